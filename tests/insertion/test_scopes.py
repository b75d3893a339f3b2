"""Rules that name nodes as NNCF does, on models whose nodes are named as PyTorch's and Keras's exporters name them."""

import logging
from typing import Any

import numpy as np
import onnx
import pytest

from onnxqat import Config, InputError, Override, Select, insert
from onnxqat.graph import io, qdq
from tests.models import batches, model, random


def named(names: str, body: str, **weights: np.ndarray) -> onnx.ModelProto:
    """The model, its nodes named as no name in a text may be."""
    proto = model(body, **weights)
    for node, name in zip(proto.graph.node, names.split(), strict=True):
        node.name = name
    return proto


#: As PyTorch's exporter names a Net with a Sequential `b1` of a convolution, a ReLU6 and a block, and a ModuleList `heads`; the
#: block's `relu` is called twice.
NET = named(
    """/b1/b1.0/Conv
    /b1/b1.1/Clip
    /b1/b1.2/conv/Conv
    /b1/b1.2/bn/BatchNormalization
    /b1/b1.2/relu/Relu
    /b1/b1.2/conv2/Conv
    /b1/b1.2/Add
    /b1/b1.2/relu_1/Relu
    /heads.0/Conv
    /Shape
    /Concat
    /Concat_1
    /GlobalAveragePool
    /Flatten
    /fc/Gemm""",
    """(float[N,4,8,8] x) => (float[N,3] y, float[N,5,8,8] z) {
    a = Conv<pads=[1,1,1,1]>(x, stem)
    b = Clip(a, low, high)
    c = Conv<pads=[1,1,1,1]>(b, conv)
    d = BatchNormalization(c, one, zero, zero, one)
    e = Relu(d)
    f = Conv<pads=[1,1,1,1]>(e, conv2)
    g = Add(f, b)
    h = Relu(g)
    z = Conv(h, head)
    size = Shape(h)
    sizes = Concat<axis=0>(size, size)
    i = Concat<axis=1>(h, b)
    j = GlobalAveragePool(i)
    k = Flatten(j)
    y = Gemm<transB=1>(k, fc) }""",
    stem=random(4, 4, 3, 3, seed=1),
    low=np.float32(0),
    high=np.float32(6),
    conv=random(4, 4, 3, 3, seed=2),
    one=np.ones(4, np.float32),
    zero=np.zeros(4, np.float32),
    conv2=random(4, 4, 3, 3, seed=3),
    head=random(5, 4, 1, 1, seed=4),
    fc=random(3, 8, seed=5),
)


def weights(**settings: Any) -> dict[str, int]:
    """Bits of the quantized weights by name."""
    proto = insert(NET, batches(NET), Config(**{"target": "openvino", "first_last_bits": None, **settings}))
    return {str(q.source.name): q.bits for q in qdq.quantizers(io.load(proto)) if q.source.is_initializer()}


ALL = {"stem", "conv", "conv2", "head", "fc"}


@pytest.mark.parametrize(
    ("scope", "selected"),
    [
        ("Net/Sequential[b1]/NNCFConv2d[0]/conv2d_0", {"stem"}),
        ("Net/Sequential[b1]/Block[2]/NNCFConv2d[conv2]/conv2d_0", {"conv2"}),
        ("Net/ModuleList[heads]/NNCFConv2d[0]/conv2d_0", {"head"}),
        ("Net/NNCFLinear[fc]/linear_0", {"fc"}),
        (r"{re}Net/Sequential\[b1\]/Block\[[0-9]*\]/NNCFConv2d\[conv.*\].*", {"conv", "conv2"}),
        (r"{re}Block\[2\]/NNCFConv2d\[conv\]/conv2d_0", {"conv"}),
        ("{re}.*linear_[0-9]", {"fc"}),
        ("/fc/Gemm", {"fc"}),
        # the layers that read what the node computes
        ("Net/Sequential[b1]/ReLU6[1]/hardtanh_0|OUTPUT", {"conv"}),
        ("Net/Sequential[b1]/Block[2]/ReLU[relu]/relu_1|OUTPUT", {"head"}),
        ("Net/adaptive_avg_pool2d_0|OUTPUT", {"fc"}),
        ("/nncf_model_input_0|OUTPUT", {"stem"}),
    ],
)  # fmt: skip
def test_scope_of_nncf_selects_the_node_at_that_path_of_modules(scope, selected):
    changed = weights(overrides=[Override(scope=scope, weight_bits=4)])
    assert changed.keys() == ALL
    assert {name for name, bits in changed.items() if bits == 4} == selected


@pytest.mark.parametrize(
    ("scope", "node"),
    [
        ("Net/Sequential[b1]/Block[2]/ReLU[relu]/relu_0", "/b1/b1.2/relu/Relu"),
        ("Net/Sequential[b1]/Block[2]/ReLU[relu]/relu_1", "/b1/b1.2/relu_1/Relu"),
        ("Net/Sequential[b1]/Block[2]/__iadd___0", "/b1/b1.2/Add"),
        ("Net/cat_0", "/Concat_1"),  # the first Concat computes sizes
        ("{re}.*__iadd___[0-2]", "/b1/b1.2/Add"),
        (r"{re}Block\[2\]/ReLU\[relu\]/relu_+1$", "/b1/b1.2/relu_1/Relu"),
    ],
)
def test_calls_are_counted_among_those_that_compute_with_the_data(scope, node):
    with pytest.raises(InputError, match=f"name '{node}' sets weight_bits where there is nothing to set"):
        weights(overrides=[Override(scope=scope, weight_bits=4)])


def test_all_kinds_of_rules_take_scopes():
    fc, head = Select(scope="Net/NNCFLinear[fc]/linear_0"), Select(scope="Net/ModuleList[heads]/NNCFConv2d[0]/conv2d_0")
    assert weights(ignore=[fc]).keys() == ALL - {"fc"}
    assert weights(only=[fc, head]).keys() == {"fc", "head"}
    everything = Override(pattern="", exclude=[fc], weight_bits=4)
    assert {name for name, bits in weights(overrides=[everything]).items() if bits == 4} == ALL - {"fc"}


def test_name_without_a_node_is_refused_with_the_nearest():
    wrong = Select(scope="Net/Sequential[b1]/NNCFConv2d[3]/conv2d_0")
    with pytest.raises(InputError, match=r"scope 'Net.*3\]/conv2d_0' matches no node \(nearest: '/b1/b1.0/Conv', "):
        weights(ignore=[wrong])
    with pytest.raises(InputError, match=r"name '/fc/Gem' matches no node \(nearest: '/fc/Gemm'"):
        weights(ignore=[Select(name="/fc/Gem")])


def test_rule_for_what_is_folded_away_is_warned_of(caplog):
    scope = "Net/Sequential[b1]/Block[2]/NNCFBatchNorm2d[bn]/batch_norm_0"
    with caplog.at_level(logging.WARNING):
        assert weights(ignore=[Select(scope=scope)]).keys() == ALL
    (message,) = (message for message in caplog.messages if "folded into others" in message)
    assert repr(scope) in message


def test_name_of_a_keras_layer_selects_its_nodes():
    proto = named(
        "conv2d/convolution conv2d_1/convolution",
        """(float[N,4,8,8] x) => (float[N,4,6,6] y) {
        a = Conv(x, w)
        y = Conv<pads=[1,1,1,1]>(a, v) }""",
        w=random(4, 4, 3, 3, seed=1),
        v=random(4, 4, 3, 3, seed=2),
    )
    found = insert(proto, batches(proto), Config(ignore=[Select(scope="conv2d")]))
    assert {str(q.source.name) for q in qdq.quantizers(io.load(found)) if q.source.is_initializer()} == {"v"}


def test_width_of_a_value_that_no_weighted_layer_reads_stays_and_is_warned_of_unless_it_is_asked_for(caplog):
    scope = "Net/Sequential[b1]/Block[2]/NNCFConv2d[conv2]/conv2d_0|OUTPUT"
    for bits, warned in ((8, False), (4, True)):
        with caplog.at_level(logging.WARNING):
            weights(overrides=[Override(scope=scope, activation_bits=bits)])
        said = f"no layer with weights reads these values, so that they keep 8 bits: {scope!r}"
        assert any(said in message for message in caplog.messages) == warned


def test_names_are_those_of_pytorchs_exporter():
    torch = pytest.importorskip("torch")
    from onnxqat.export.torch import export

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
            self.relu = torch.nn.ReLU()

        def forward(self, x):
            return self.relu(self.body(self.relu(x)) + x)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])
            self.fc = torch.nn.Linear(96, 2)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.fc(torch.cat([x, x], 1).flatten(1))

    proto = export(Net(), torch.randn(2, 3, 4, 4))
    config = Config(
        first_last_bits=None,
        overrides=[
            Override(scope="Net/ModuleList[blocks]/Block[1]/Sequential[body]/NNCFConv2d[0]/conv2d_0", weight_bits=4),
            Override(scope="Net/ModuleList[blocks]/Block[1]/ReLU[relu]/relu_0|OUTPUT", activation_bits=5),
            Override(scope="Net/ModuleList[blocks]/Block[1]/ReLU[relu]/relu_1|OUTPUT", activation_bits=7),
            Override(scope="Net/NNCFLinear[fc]/linear_0", weight_bits=6),
        ],
    )
    found = io.load(insert(proto, batches(proto), config))
    widths = {str(q.source.name): q.bits for q in qdq.quantizers(found)}
    assert [widths[f"{name}.weight"] for name in ("blocks.0.body.0", "blocks.1.body.0", "fc")] == [8, 4, 6]
    assert widths["/blocks.1/relu/Relu_output_0"] == 5
    assert 7 in widths.values()
