from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
import torch

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.autodiff.lowering import lower
from onnxqat.numerics import (
    fake_quantize,
    fake_quantize_e4m3,
    fake_quantize_e4m3_gradient,
    fake_quantize_gradient,
    in_blocks,
    spread,
)
from onnxqat.runtime import exact_options, session
from onnxqat.training.quantizers import fakequant
from onnxqat.training.quantizers.calls import call_quantizers
from onnxqat.training.training_graph.memory import schedule

CARRIERS = {"int8": (-128, 127), "uint8": (0, 255), "float8e4m3fn": (-448, 448)}
CODES = {"int8": np.int8, "uint8": np.uint8, "float8e4m3fn": ml_dtypes.float8_e4m3fn}


def quantized_graph(shape, dtype, bounds, axis, scale_shape, zero_point, before="", opset=17):
    """y = quantizer(before(x)); loss = Σ y·dy."""
    dims = f"[{','.join(map(str, shape))}]" if shape else ""
    channels = "" if axis is None else f"[{scale_shape[0]}]"
    along = "" if axis is None else f"<axis={axis}>"
    ones = ",".join("1" * int(np.prod(scale_shape)))
    clip = "c = Clip (q, low, high)" if bounds != CARRIERS[dtype] else "c = Identity (q)"
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float{dims} x, float{dims} dy) => (float loss)
        <float{channels} scale = {{{ones}}}, {dtype}{channels} zero_point = {{{ones}}},
         {dtype} low = {{{bounds[0]}}}, {dtype} high = {{{bounds[1]}}}>
        {{
            {before or "r = Identity (x)"}
            q = QuantizeLinear {along} (r, scale, zero_point)
            {clip}
            y = DequantizeLinear {along} (c, scale, zero_point)
            product = Mul (y, dy)
            loss = ReduceSum <keepdims=0> (product)
        }}""")
    for name, array in (("scale", np.ones(scale_shape, np.float32)), ("zero_point", zero_point.astype(CODES[dtype]))):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    passes.IdentityEliminationPass()(model)
    passes.ShapeInferencePass()(model)
    return model


def gradients(model, x, dy, scale):
    """(dx, dscale) as training computes them."""
    call_quantizers(model)
    trained = differentiate(model, "loss", ["x", "scale"])
    schedule(trained, ["loss"])
    return session(trained, exact_options()).run(
        ["x_grad", "scale_grad"], {"x": x, "dy": dy, "scale": np.asarray(scale)}
    )


def values(model, x, scale):
    """y."""
    graph = model.graph
    graph.initializers["scale"].const_value = ir.tensor(scale, name="scale")
    graph.outputs[:] = [value for node in graph for value in node.outputs if value.name == "y"]
    graph.outputs[0].type, graph.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(x.shape)
    return session(model, exact_options()).run(["y"], {"x": x, "dy": x})[0]


def data(shape, scale, zero_point, bounds, axis, seed=0):
    """Data that fills the range and goes half as far beyond it on both sides; away from the edge by 1e-3 of a step."""
    random = np.random.default_rng(seed)
    low, high = bounds
    codes = random.uniform(low - (high - low) / 2, high + (high - low) / 2, shape)
    codes = np.where(np.abs(codes - np.floor(codes) - 0.5) < 1e-3, codes + 0.01, codes)
    to_channels = [1] * len(shape)
    if axis is not None:
        to_channels[axis] = -1
    x = (codes - zero_point.reshape(to_channels if axis is not None else ())) * scale.reshape(
        to_channels if axis is not None else ()
    )
    return np.asarray(x, np.float32), np.asarray(random.standard_normal(shape), np.float32)


def torch_gradients(x, dy, scale, zero_point, bounds, axis):
    tensor = torch.tensor(x, requires_grad=True)
    s = torch.tensor(np.atleast_1d(scale), requires_grad=True)
    z = torch.tensor(np.atleast_1d(zero_point).astype(np.float32))
    if axis is None:
        y = torch._fake_quantize_learnable_per_tensor_affine(tensor, s, z, *bounds, 1.0)
    else:
        y = torch._fake_quantize_learnable_per_channel_affine(tensor, s, z, axis, *bounds, 1.0)
    y.backward(torch.tensor(dy))
    return tensor.grad.numpy(), s.grad.numpy().reshape(scale.shape)


QUANTIZERS = [
    pytest.param("uint8", (0, 255), 0, id="uint8"),
    pytest.param("uint8", (0, 255), 128, id="uint8 zero point 128"),
    pytest.param("uint8", (0, 255), 255, id="uint8 zero point 255"),
    pytest.param("int8", (-128, 127), 0, id="int8"),
    pytest.param("int8", (-127, 127), 0, id="int8 narrow"),
    pytest.param("uint8", (0, 63), 17, id="6 bits"),
    pytest.param("int8", (-16, 15), 3, id="5 bits"),
    pytest.param("int8", (-8, 7), 0, id="4 bits"),
    pytest.param("uint8", (0, 7), 3, id="3 bits"),
    pytest.param("int8", (-2, 1), 0, id="2 bits"),
]
INNER = [
    pytest.param((6, 5, 3), 1, id="per channel, axis 1"),
    pytest.param((4, 5), 1, id="per channel, last axis"),
]
SCALES = [
    pytest.param((6, 5, 7), None, id="per tensor"),
    pytest.param((), None, id="of a scalar"),
    pytest.param((6, 5, 1, 1), 0, id="per channel, axis 0"),
    *INNER,
]


@pytest.mark.parametrize(("dtype", "bounds", "zero_point"), QUANTIZERS)
@pytest.mark.parametrize(("shape", "axis"), SCALES)
def test_gradients_are_those_of_torch(shape, axis, dtype, bounds, zero_point):
    random = np.random.default_rng(1)
    channels = () if axis is None else (shape[axis],)
    scale = np.exp(random.normal(-3, 0.5, channels)).astype(np.float32)
    zero_points = np.full(channels, zero_point)
    x, dy = data(shape, scale, zero_points, bounds, axis)

    dx, dscale = gradients(quantized_graph(shape, dtype, bounds, axis, channels, zero_points), x, dy, scale)

    torch_dx, torch_dscale = torch_gradients(x, dy, scale, zero_points, bounds, axis)
    np.testing.assert_array_equal(dx, torch_dx)
    # 1e-5 of the sum's terms: torch adds them up in float32 too
    np.testing.assert_allclose(dscale, torch_dscale, rtol=1e-5, atol=1e-5 * np.abs(torch_dscale).max())


@pytest.mark.parametrize(("shape", "axis"), SCALES)
def test_values_and_gradients_of_e4m3_are_those_of_the_formulas(shape, axis):
    channels = () if axis is None else (shape[axis],)
    scale = np.exp(np.random.default_rng(1).normal(-3, 0.5, channels)).astype(np.float32)
    x, dy = data(shape, scale, np.zeros(channels), (-448, 448), axis)
    make = partial(quantized_graph, shape, "float8e4m3fn", (-448, 448), axis, channels, np.zeros(channels), opset=19)

    dx, dscale = gradients(make(), x, dy, scale)

    expected = fake_quantize_e4m3_gradient(dy, x, scale, axis)
    np.testing.assert_array_equal(dx, expected[0])
    # 1e-5 of the sum's terms, which the runtime adds up in float32 along inner axes
    np.testing.assert_allclose(dscale, expected[1], rtol=1e-5, atol=1e-5 * np.abs(expected[1]).max())
    called = make()
    call_quantizers(called)
    np.testing.assert_array_equal(values(called, x, scale), fake_quantize_e4m3(x, scale, axis))


@pytest.mark.parametrize(("dtype", "bounds", "zero_point"), QUANTIZERS)
@pytest.mark.parametrize(("shape", "axis"), INNER)
def test_values_are_the_deployed_ones_ties_included(shape, axis, dtype, bounds, zero_point):
    channels = (shape[axis],)
    scale, zero_points = np.full(channels, 0.3, np.float32), np.full(channels, zero_point)
    halves = np.arange(np.prod(shape)).reshape(shape) / 2
    x = np.asarray(0.3 * (halves - halves.mean()), np.float32)

    deployed, trained = (quantized_graph(shape, dtype, bounds, axis, channels, zero_points) for _ in range(2))
    call_quantizers(trained)
    lower(trained, ())

    expected, actual = (values(model, x, scale) for model in (deployed, trained))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize(("shape", "axis"), SCALES)
def test_gradients_are_the_same_in_every_opset(shape, axis, opset):
    channels = () if axis is None else (shape[axis],)
    scale, zero_points, bounds = np.full(channels, 0.1, np.float32), np.zeros(channels), (-8, 7)
    x, dy = data(shape, scale, zero_points, bounds, axis)
    graphs = [quantized_graph(shape, "int8", bounds, axis, channels, zero_points, opset=o) for o in (17, opset)]
    expected, actual = (gradients(graph, x, dy, scale) for graph in graphs)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def graph_of_blocks(shape, axis, block, dtype, scale, zero_points):
    """y = quantizer(x) in blocks; loss = Σ y·dy."""
    dims, along = f"[{shape[0]},{shape[1]}]", f"<axis={axis}, block_size={block}>"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float{dims} x, float{dims} dy) => (float loss) {{
            q = QuantizeLinear {along} (x, scale, zero_point)
            y = DequantizeLinear {along} (q, scale, zero_point)
            product = Mul (y, dy)
            loss = ReduceSum <keepdims=0> (product)
        }}""")
    codes = zero_points.astype(getattr(ml_dtypes, dtype))
    for name, array in (("scale", scale), ("zero_point", codes)):
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == name:
                    node.replace_input_with(index, value)
    passes.ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize(("dtype", "low"), [("int4", -8), ("uint4", 0)])
@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((64, 6), 0, 16), ((6, 64), 1, 32), ((50, 6), 0, 32), ((6, 40), 1, 128)]
)
def test_blocks_have_the_deployed_values_and_the_gradients_of_torch(shape, axis, block, dtype, low):
    random, bounds = np.random.default_rng(3), (low, low + 15)
    counts = tuple(-(-size // block) if i == axis else size for i, size in enumerate(shape))
    scale = np.exp(random.normal(-3, 0.5, counts)).astype(np.float32)
    zero_points = random.integers(low + 4, low + 12, counts) if dtype == "uint4" else np.zeros(counts, np.int64)
    codes, dy = data(shape, np.float32(1), np.array(0), bounds, None)
    x = np.asarray((codes - spread(zero_points, shape, axis, block)) * spread(scale, shape, axis, block), np.float32)

    dx, dscale = gradients(graph_of_blocks(shape, axis, block, dtype, scale, zero_points), x, dy, scale)
    deployed, trained = (graph_of_blocks(shape, axis, block, dtype, scale, zero_points) for _ in range(2))
    call_quantizers(trained)
    lower(trained, ())
    expected, actual = (values(model, x, scale) for model in (deployed, trained))

    np.testing.assert_array_equal(actual, expected)
    rows = [  # torch has scales per channel: a channel is a block
        np.moveaxis(in_blocks(array, axis, block), axis + 1, -1).reshape(-1, block) for array in (x, dy)
    ]
    torch_dx, torch_dscale = torch_gradients(*rows, scale.reshape(-1), zero_points.reshape(-1), bounds, 0)
    np.testing.assert_array_equal(np.moveaxis(in_blocks(dx, axis, block), axis + 1, -1).reshape(-1, block), torch_dx)
    np.testing.assert_allclose(dscale, torch_dscale.reshape(counts), rtol=1e-4, atol=1e-5 * np.abs(torch_dscale).max())
    reference = fake_quantize_gradient(dy, x, scale, zero_points, *bounds, axis, block)
    np.testing.assert_allclose(dscale, reference[1], rtol=1e-4, atol=1e-5 * np.abs(torch_dscale).max())


@pytest.mark.parametrize(("dtype", "bounds", "zero_point"), QUANTIZERS)
def test_ties_inside_the_range_pass_the_gradient(dtype, bounds, zero_point):
    scale = np.float32(0.3)
    codes = np.arange(bounds[0], bounds[1])
    x = ((codes + np.float32(0.5) - zero_point) * scale).astype(np.float32)[None]
    dy = np.ones_like(x)
    dx, _ = gradients(quantized_graph(x.shape, dtype, bounds, None, (), np.array(zero_point)), x, dy, scale)
    np.testing.assert_array_equal(dx, dy)


@pytest.mark.parametrize("ceiling", [None, 6.0], ids=["Relu", "Clip"])
@pytest.mark.parametrize("bounds", [(0, 255), (0, 15)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("share", [1.0, 0.9], ids=["whole range", "part of the range"])
def test_an_absorbed_activation_has_the_gradient_of_both(ceiling, bounds, share):
    clip = "zero = Constant <value_float=0.0> () six = Constant <value_float=6.0> () r = Clip (x, zero, six)"
    before = "r = Relu (x)" if ceiling is None else clip
    scale = np.float32(share * 6 / bounds[1])
    random = np.random.default_rng(2)
    x = random.uniform(-4, 10, (8, 500)).astype(np.float32)
    dy = random.standard_normal(x.shape).astype(np.float32)
    model = quantized_graph(x.shape, "uint8", bounds, None, (), np.array(0), before)
    model.graph.initializers["scale"].const_value = ir.tensor(scale, name="scale")

    dx, dscale = gradients(model, x, dy, scale)

    tensor = torch.tensor(x, requires_grad=True)
    activated = torch.relu(tensor) if ceiling is None else torch.nn.functional.hardtanh(tensor, 0, 6)
    s = torch.tensor([scale], requires_grad=True)
    y = torch._fake_quantize_learnable_per_tensor_affine(activated, s, torch.zeros(1), *bounds, 1.0)
    y.backward(torch.tensor(dy))
    np.testing.assert_array_equal(dx, tensor.grad.numpy())
    np.testing.assert_allclose(dscale, s.grad.numpy()[0], rtol=1e-5)


def test_an_activation_that_the_quantizer_implies_is_absorbed():
    model = quantized_graph((2, 3), "uint8", (0, 255), None, (), np.array(0), "r = Relu (x)")
    call_quantizers(model)
    assert "Relu" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("dtype", "zero_point"), [("int8", 0), ("uint8", 3)], ids=["signed", "zero point above the lowest code"]
)
def test_an_activation_that_the_quantizer_does_not_imply_stays(dtype, zero_point):
    model = quantized_graph((2, 3), dtype, CARRIERS[dtype], None, (), np.array(zero_point), "r = Relu (x)")
    call_quantizers(model)
    assert "Relu" in {node.op_type for node in model.graph}


@pytest.mark.parametrize(("shape", "axis"), SCALES[:2])
def test_gradient_is_the_derivative_of_the_surrogate(shape, axis):
    """(clip(x/s) + (rint(u) - u)) · s with the rounding residual frozen, by central differences in a random direction."""
    random = np.random.default_rng(3)
    bounds = (-8, 7)
    channels = () if axis is None else (shape[axis],)
    scale = np.exp(random.normal(-2, 0.3, channels)).astype(np.float32)
    x, dy = data(shape, scale, np.zeros(channels), bounds, axis)
    direction, turn = random.standard_normal(shape), random.standard_normal(channels)

    dx, dscale = gradients(quantized_graph(shape, "int8", bounds, axis, channels, np.zeros(channels)), x, dy, scale)

    wide = (-1,) + (1,) * (len(shape) - 1) if axis == 0 else ()
    s0 = scale.astype(np.float64).reshape(wide)
    u0 = x.astype(np.float64) / s0
    inside = (np.rint(u0) >= bounds[0]) & (np.rint(u0) <= bounds[1])
    residual = np.where(inside, np.rint(u0) - u0, 0)
    limits = np.where(inside, np.inf, 0)

    def loss(t):
        s = s0 + t * turn.reshape(wide)
        u = (x + t * direction) / s
        clipped = np.where(limits > 0, u + residual, np.clip(u, *bounds))
        return np.sum(clipped * s * dy)

    step = 1e-6
    expected = (loss(step) - loss(-step)) / (2 * step)
    actual = np.sum(dx * direction) + np.sum(dscale * turn)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_numpy_gradient_agrees_with_torch():
    scale, bounds, zero_point = np.float32(0.05), (0, 255), np.array(100)
    x, dy = data((5, 40), scale, zero_point, bounds, None)
    dx, dscale = fake_quantize_gradient(dy, x, scale, 100, *bounds)
    torch_dx, torch_dscale = torch_gradients(x, dy, scale, zero_point, bounds, None)
    np.testing.assert_array_equal(dx, torch_dx)
    np.testing.assert_allclose(dscale, torch_dscale, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "bounds", "zero_point"), QUANTIZERS)
def test_the_function_computes_what_the_quantizer_does(dtype, bounds, zero_point):
    scale = np.float32(0.07)
    x, dy = data((3, 50), scale, np.array(zero_point), bounds, None)
    model = quantized_graph(x.shape, dtype, bounds, None, (), np.array(zero_point))
    model.graph.initializers["scale"].const_value = ir.tensor(scale, name="scale")
    call_quantizers(model)
    assert any(fakequant.is_call(node) for node in model.graph)
    schedule(model, ["loss"])
    loss = session(model, exact_options()).run(["loss"], {"x": x, "dy": dy})[0]
    expected = np.sum(fake_quantize(x, scale, zero_point, *bounds).astype(np.float64) * dy)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("axis", "shape"), [(None, (2, 24, 50, 50)), (0, (2, 60000))], ids=["tensor", "channels"])
def test_a_long_sum_keeps_the_digits_of_a_gradient_of_a_scale(axis, shape):
    random = np.random.default_rng(3)
    x, dy = (random.uniform(-20, 20, shape).astype(np.float32) for _ in range(2))
    scale = np.full(() if axis is None else shape[:1], 0.5, np.float32)
    model = quantized_graph(shape, "int8", CARRIERS["int8"], axis, scale.shape, np.zeros(scale.shape))
    _, found = gradients(model, x, dy, scale)
    residuals = np.rint(x.astype(np.float64) * 2) / 2 - x
    sums = (dy * residuals).sum(axis=None if axis is None else 1)
    np.testing.assert_allclose(found, sums / 0.5, rtol=1.5e-6)  # a row in one piece is off by 2e-6 and more
