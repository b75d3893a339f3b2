import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.torch import export, load_factory, random_sample
from tests.command_line import status_of


class Residual(nn.Module):
    """Depthwise and pointwise convolution, batch normalization, a residual, dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = functional.relu6(self.norm(self.stem(image)))
        x = functional.relu(x + self.norm2(self.depthwise(x)))
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 1).flatten(1)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")

    def forward(self, tokens):
        return self.layer(self.embed(tokens))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 6, batch_first=True)

    def forward(self, series):
        return self.cell(series)[0][:, -1]


class TwoInputs(nn.Module):
    def forward(self, left, right):
        return {"total": left + right, "difference": left - right}


class Tied(nn.Module):
    """One Linear used twice on rank 3, where the exporter writes a Transpose of the weight each time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(functional.relu(self.linear(x)))


class ByShape(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[1] > 3 else x


class ByValue(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class FixedBatch(nn.Module):
    def forward(self, x):
        return functional.conv1d(x.reshape(2, 1, 4), torch.ones(1, 1, 3))


class Half(nn.Module):
    def forward(self, x):
        return x.bfloat16()


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Nested(nn.Module):
    def forward(self, x):
        return x, [x, x]


def trained(module: nn.Module) -> nn.Module:
    """The module with parameters and running statistics that are not all alike, as after training."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.5)
    return module


def make_residual() -> nn.Module:
    return Residual()


def make_attention() -> nn.Module:
    return Attention()


def failing() -> nn.Module:
    raise OSError("no such checkpoint")


def runtime_outputs(model: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], arrays, strict=True)))


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MODULES = [
    pytest.param(Residual, IMAGES, id="residual"),
    pytest.param(Attention, torch.arange(10).reshape(2, 5), id="attention"),
    pytest.param(Recurrent, torch.randn(2, 5, 4), id="lstm"),
    pytest.param(Tied, torch.randn(2, 3, 4), id="tied"),
    pytest.param(ByShape, torch.randn(2, 4), id="decides-by-shape"),
]


@pytest.mark.parametrize(("make", "sample"), MODULES)
def test_model_answers_as_the_module_at_other_batch_sizes(make, sample):
    module = trained(make()).eval()
    model = export(module, sample)
    for rows in (1, 7):
        inputs = sample[:1].repeat(rows, *[1] * (sample.ndim - 1))
        (found,) = runtime_outputs(model, inputs.numpy())
        with torch.no_grad():
            np.testing.assert_allclose(found, module(inputs).numpy(), rtol=1e-4, atol=1e-4)


def test_graph_keeps_names_batch_axis_and_batch_normalization():
    module = Residual()
    model = export(module, IMAGES)
    names = {tensor.name for tensor in model.graph.initializer}
    counters = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    assert set(module.state_dict()) - counters <= names
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == ["image", "output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert Counter(node.op_type for node in model.graph.node) == {
        "Conv": 2,
        "BatchNormalization": 2,
        "Clip": 1,
        "Add": 1,
        "Relu": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }


def test_parameters_that_are_equal_stay_apart():
    # As built, all scales and variances are one, all offsets and means zero.
    model = export(Residual(), IMAGES)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    parameters = [name for node in norms for name in node.input[1:]]
    assert len(set(parameters)) == 8


def test_weight_that_two_layers_share_stays_one():
    model = export(trained(Tied()), torch.randn(2, 3, 4))
    assert {node.input[1] for node in model.graph.node if node.op_type == "MatMul"} == {"linear.weight"}


def test_training_modes_of_all_parts_come_back():
    module = Residual().train()
    module.norm.eval()
    export(module, IMAGES)
    assert module.training
    assert module.drop.training
    assert not module.norm.training


def test_inputs_and_outputs_are_named_as_forward_names_them():
    left, right = torch.randn(2, 3), torch.randn(2, 3)
    model = export(TwoInputs(), (left, right))
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == [
        "left",
        "right",
        "total",
        "difference",
    ]
    total, difference = runtime_outputs(model, left.numpy(), right.numpy())
    np.testing.assert_array_equal(total, (left + right).numpy())
    np.testing.assert_array_equal(difference, (left - right).numpy())


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_file_has_the_opset_asked_for_and_an_ir_that_training_reads(tmp_path, opset):
    export(Residual(), IMAGES, tmp_path / "model.onnx", opset=opset)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version <= 10
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


REFUSED = [
    pytest.param(ByValue, torch.randn(2, 4), "decides by the values of a tensor.*torch.where", id="by-value"),
    pytest.param(FixedBatch, torch.randn(2, 4), "FixedBatch: forward takes 2 rows but not 3", id="fixed-batch"),
    pytest.param(Half, torch.randn(2, 4), "Half: output 'output' is bfloat16; leave out of forward", id="half"),
    pytest.param(Random, torch.randn(2, 4), "off by .* remove randomness", id="random"),
    pytest.param(Nested, torch.randn(2, 4), "forward returns a tuple of Tensor, list; return a tensor", id="nested"),
]


@pytest.mark.parametrize(("make", "sample", "message"), REFUSED)
def test_module_that_has_no_onnx_form_is_refused_in_one_line(tmp_path, capfd, make, sample, message):
    with pytest.raises(InputError, match=message) as caught:
        export(make(), sample, tmp_path / "model.onnx", exporter="torchscript")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


BAD_CALLS = [
    pytest.param(torch.randn(2, 1, 16, 16), {}, r"does not take \[2, 1, 16, 16\] float32", id="shape"),
    pytest.param(IMAGES.long(), {}, "does not take .* int64", id="type"),
    pytest.param((IMAGES, IMAGES), {}, "does not take", id="too-many"),
    pytest.param((), {}, "sample: is empty", id="none"),
    pytest.param(torch.tensor(1.0), {}, "at least one row", id="scalar"),
    pytest.param((IMAGES, 3), {}, "input 1 is a int; give tensors", id="no-tensor"),
    pytest.param((IMAGES, IMAGES[:1]), {}, "input 1 has 1 rows, input 0 has 2", id="rows"),
    pytest.param(IMAGES, {"opset": 21}, "opset 21: this exporter writes 13 to 20", id="opset"),
    pytest.param(IMAGES, {"path": "absent/model.onnx"}, "does not exist", id="path"),
    pytest.param(IMAGES, {"exporter": "onnx"}, "exporter 'onnx': .* use auto, torchscript, dynamo", id="exporter"),
]


@pytest.mark.parametrize(("sample", "arguments", "message"), BAD_CALLS)
def test_call_that_cannot_work_names_its_remedy(sample, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        export(Residual(), sample, **arguments)
    assert not isinstance(caught.value, UnsupportedModelError)


def test_factory_is_found_by_name():
    assert isinstance(load_factory(f"{__name__}:make_residual"), Residual)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("tests.export.test_torch:trained_on_nothing", "has no 'trained_on_nothing'", id="absent"),
        pytest.param("tests.export.test_torch:MODULES", "gives a list, not a torch.nn.Module", id="no-module"),
        pytest.param("tests.export.test_torch:trained", "cannot be called without arguments", id="needs-arguments"),
        pytest.param("tests.export.test_torch:failing", r"fails \(OSError: no such checkpoint\)", id="fails"),
    ],
)
def test_factory_that_gives_no_module_is_named(name, message):
    with pytest.raises(InputError, match=message):
        load_factory(name)


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [("2,3,4", [2, 3, 4], torch.float32), ("int64:1,16", [1, 16], torch.int64), ("uint8:5", [5], torch.uint8)],
)
def test_sample_is_of_the_shape_and_type_that_the_text_says(text, shape, dtype):
    sample = random_sample(text)
    assert list(sample.shape) == shape
    assert sample.dtype == dtype
    assert torch.equal(sample, random_sample(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is not a shape; write it as 1,3,224,224"),
        ("1,0", "holds a size below 1"),
        ("bool:1", "'bool' is no type here; use float32, int64"),
    ],
)
def test_text_that_says_no_sample_is_named(text, message):
    with pytest.raises(InputError, match=message):
        random_sample(text)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [("make_attention", ["int64:2,5"]), ("TwoInputs", ["2,3", "2,3"])],
    ids=["integers", "two inputs"],
)
def test_command_line_exports_inputs_of_any_number_and_type(make, inputs, tmp_path):
    given = [part for text in inputs for part in ("--input", text)]
    output = tmp_path / "model.onnx"
    chosen = ["--exporter", "torchscript"]
    assert status_of("export", "torch", f"{__name__}:{make}", *given, *chosen, "-o", output) == 0
    assert len(onnx.load(output).graph.input) == len(inputs)


def test_export_package_imports_no_framework():
    # onnxruntime's training wheel looks for torch by itself, where it is installed.
    code = (
        "import onnxruntime, sys; before = set(sys.modules); import onnxqat.export; "
        "sys.exit(any(name in set(sys.modules) - before for name in ('torch', 'tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_pytorch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import onnxqat.export.torch"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "MissingExtraError: PyTorch is not installed; run `pip install 'onnxqat[torch]'`" in run.stderr
