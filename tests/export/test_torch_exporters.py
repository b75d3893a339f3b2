"""Which of PyTorch's exporters writes a module, and what the model says beyond its graph."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from onnxqat.errors import UnsupportedModelError
from onnxqat.export.torch import export
from onnxqat.graph.structure import OUTPUTS
from tests.export.test_torch import IMAGES, TwoInputs, runtime_outputs, trained


class Newer(nn.Module):
    """What only the newer exporter writes; its normalizations' weights and offsets are equal, as built."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
        self.block = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(36, 6)), nn.RMSNorm(6), nn.RMSNorm(6)
        )

    def forward(self, image):
        x = functional.adaptive_avg_pool2d(self.conv(image).relu(), (3, 3))
        return {"score": self.block(x.flatten(1)), "map": x}


class WholeBatch(nn.Module):
    def forward(self, x):
        return (x.double() * 2,)


class TracedBatch(nn.Module):
    def forward(self, x):
        return x + torch.zeros(int(x.shape[0]), 4)


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x[:, :, None] @ x[:, None])


def test_newer_exporter_writes_what_the_other_cannot_under_the_same_names():
    module = trained(Newer()).eval()
    model = export(module, IMAGES[:1])
    with torch.no_grad():
        want = module(IMAGES)
    for found, (name, value) in zip(runtime_outputs(model, IMAGES.numpy()), want.items(), strict=True):
        np.testing.assert_allclose(found, value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in model.graph.output] == [
        ("score", "batch"),
        ("map", "batch"),
    ]
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [(node.name, *node.input[1:]) for node in weighted] == [
        ("/conv/Conv", "conv.weight", "conv.bias"),
        ("/block/0/Gemm", "block.0.weight", "block.0.bias"),
    ]
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"block.1.weight", "block.2.weight"} <= names
    assert all(node.name.startswith("/") and not node.metadata_props for node in model.graph.node)


def test_bare_encoder_layer_is_exported():
    module = trained(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    series = torch.randn(5, 3, 8)
    (found,) = runtime_outputs(export(module, series[:2]), series.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, module(series).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_module_of_half_precision_is_exported_as_float32(kind, caplog):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).to(kind).eval()
    sample = torch.randn(2, 4)
    model = export(module, sample.to(kind))
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert f"its weights are {str(kind).removeprefix('torch.')}" in caplog.text
    with torch.no_grad():
        want = module(sample.to(kind)).float().numpy()
    np.testing.assert_allclose(runtime_outputs(model, sample.numpy())[0], want, atol=0.02)  # three digits of bfloat16
    assert module[0].weight.dtype == kind


@pytest.mark.parametrize(
    ("module", "inputs", "structure"),
    [
        pytest.param(TwoInputs(), (torch.ones(2, 3), torch.ones(2, 3)), ["total", "difference"], id="dict"),
        pytest.param(WholeBatch(), torch.ones(2, 3), "tuple", id="tuple of one"),
        pytest.param(nn.ReLU(), torch.ones(2, 3), None, id="tensor"),
    ],
)
def test_metadata_says_how_forward_returns_its_outputs(module, inputs, structure):
    found = {entry.key: entry.value for entry in export(module, inputs).metadata_props}
    assert found == ({} if structure is None else {OUTPUTS: json.dumps(structure)})


def test_batch_size_that_tracing_fixes_is_refused_by_that_exporter_alone():
    with pytest.raises(UnsupportedModelError, match=r"TracedBatch: .* at batch size 3"):
        export(TracedBatch(), torch.randn(2, 4), exporter="torchscript")
    assert len(runtime_outputs(export(TracedBatch(), torch.randn(2, 4)), np.ones((5, 4), np.float32))[0]) == 5


def test_operator_that_neither_exporter_can_write_is_named():
    with pytest.raises(UnsupportedModelError, match=r"cannot export it .*linalg_eigvalsh"):
        export(Eigenvalues(), torch.randn(2, 4))
