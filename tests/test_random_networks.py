"""Random small networks through insert and fold: no exception, valid models, and the deployed one answers as the Q/DQ one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.insertion import insert
from tests.models import batches, float_kernels, outputs

ROWS, SIZE = 4, 8
ACTIVATIONS = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.1},
    "Sigmoid": {},
    "Tanh": {},
    "HardSwish": {},
    "Elu": {},
}
#: Kernel sizes of pooling halve the image.
POOLINGS = {
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]},
}


@dataclass
class Network:
    """A graph that grows; `shapes` has (channels, height, width) of each value that may be read on."""

    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=lambda: {"x": (4, SIZE, SIZE)})

    def add(self, operator: str, inputs: list[str], shape: tuple[int, int, int], **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def weight(self, *shape: int, gain: float = 1.0, shift: float = 0.0) -> str:
        """Normal numbers whose sums over a kernel keep the variance of what they multiply."""
        spread = gain / np.sqrt(max(np.prod(shape[1:]), 1))
        array = (self.random.normal(size=shape) * spread + shift).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def model(self, output: str, shape: list[object]) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shapes["x"]])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "random", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolve(net: Network, draw, value: str) -> str:
    channels, height, width = net.shapes[value]
    kernel = draw(st.sampled_from([1, 3]))
    group = draw(st.sampled_from([1, channels, 2 if channels % 2 == 0 else 1]))
    out = channels if group == channels else group * draw(st.integers(1, 4))
    inputs = [value, net.weight(out, channels // group, kernel, kernel)]
    if draw(st.booleans()):
        inputs.append(net.weight(out, gain=0.1))
    pads = [kernel // 2] * 4
    return net.add("Conv", inputs, (out, height, width), group=group, pads=pads, kernel_shape=[kernel, kernel])


def activate(net: Network, draw, value: str) -> str:
    operator = draw(st.sampled_from(sorted(ACTIVATIONS)))
    return net.add(operator, [value], net.shapes[value], **ACTIVATIONS[operator])


def normalize(net: Network, draw, value: str) -> str:
    channels = net.shapes[value][0]
    parameters = [net.weight(channels, gain=0.1, shift=shift) for shift in (1.0, 0.0, 0.0, 1.0)]
    return net.add("BatchNormalization", [value, *parameters], net.shapes[value])


def pool(net: Network, draw, value: str) -> str:
    channels, height, width = net.shapes[value]
    if height < 2 or width < 2:
        return value
    operator = draw(st.sampled_from(sorted(POOLINGS)))
    return net.add(operator, [value], (channels, height // 2, width // 2), **POOLINGS[operator])


def move(net: Network, draw, value: str) -> str:
    channels, height, width = net.shapes[value]
    return net.add("Transpose", [value], (channels, width, height), perm=[0, 1, 3, 2])


def join(net: Network, draw, value: str) -> str:
    """Add where there is another value of the same shape, Concat where only the image's size is the same."""
    shape = net.shapes[value]
    same = [name for name, other in net.shapes.items() if other == shape and name != value]
    if same and draw(st.booleans()):
        return net.add(draw(st.sampled_from(["Add", "Mul"])), [value, draw(st.sampled_from(same))], shape)
    near = [name for name, other in net.shapes.items() if other[1:] == shape[1:] and other[0] <= 8]
    if not near or shape[0] > 8:
        return value
    other = draw(st.sampled_from(near))
    return net.add("Concat", [value, other], (shape[0] + net.shapes[other][0], *shape[1:]), axis=1)


STEPS = {"conv": convolve, "activation": activate, "norm": normalize, "pool": pool, "move": move, "join": join}


@st.composite
def networks(draw) -> onnx.ModelProto:
    net = Network(np.random.default_rng(draw(st.integers(0, 2**16))))
    value = convolve(net, draw, "x")
    for step in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8)):
        value = STEPS[step](net, draw, value)
    if not draw(st.booleans()):
        return net.model(convolve(net, draw, value), ["N", "C", "H", "W"])
    channels, height, width = net.shapes[value]
    width_of_head = channels * height * width
    if draw(st.booleans()):
        value, width_of_head = net.add("GlobalAveragePool", [value], (channels, 1, 1)), channels
    flat = net.add("Flatten", [value], (0, 0, 0))
    logits = net.add("Gemm", [flat, net.weight(3, width_of_head), net.weight(3, gain=0.1)], (0, 0, 0), transB=1)
    return net.model(logits, ["N", 3])


def inserted(proto: onnx.ModelProto, **config) -> onnx.ModelProto:
    quantized = insert(proto, batches(proto, 2, ROWS), Config(**config))
    onnx.checker.check_model(quantized, full_check=True)
    scales = [q.scales for q in qdq.quantizers(io.load(quantized))]
    assert all(np.isfinite(s).all() and (s > 0).all() for s in scales)
    return quantized


def step_of(deployed: onnx.ModelProto, output: np.ndarray) -> float:
    """The scale of the quantizer that the output comes out of; else what 8 bits would resolve of its range."""
    produced = qdq.by_output(qdq.quantizers(loaded := io.load(deployed)))
    (value,) = loaded.graph.outputs
    return float(produced[value].scales.max()) if value in produced else float(np.ptp(output)) / 255


@pytest.mark.slow
@settings(max_examples=30)
@given(proto=networks())
def test_deployed_network_runs_on_integers_and_agrees_with_the_inserted_one(proto):
    quantized = inserted(proto)
    deployed = fold(quantized)
    onnx.checker.check_model(deployed, full_check=True)
    assert float_kernels(deployed) == set()
    for batch in batches(proto, 2, ROWS):
        (simulated,), (fused,) = outputs(quantized, batch), outputs(deployed, batch, plain=False)
        steps = np.abs(simulated - fused) / step_of(deployed, simulated)
        # a bias that moved by half a step of its scale may tip a code over, which the layers behind it spread and amplify
        assert (steps > 2.5).mean() <= 0.1
        assert steps.max() <= 10


@pytest.mark.slow
@settings(max_examples=25)
@given(
    proto=networks(),
    target=st.sampled_from(["ort-cpu", "openvino"]),
    bits=st.integers(2, 8),
    estimator=st.sampled_from(["min_max", "mse", "percentile", "mean_min_max"]),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    symmetric=st.booleans(),
)
def test_every_configuration_gives_valid_models(proto, target, bits, estimator, granularity, symmetric):
    quantized = inserted(
        proto,
        target=target,
        weight_bits=bits,
        activation_bits=bits,
        activation_range=estimator,
        weight_range=estimator,
        weight_granularity=granularity,
        weight_symmetric=symmetric,
        activation_symmetric=symmetric,
    )
    onnx.checker.check_model(fold(quantized), full_check=True)
