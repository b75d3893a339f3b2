import numpy as np
import onnx_ir as ir
import pytest

from onnxqat.errors import UnsupportedModelError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.qdq import Spec, is_quantized, quantizers
from tests.models import model, random

PAIR = """(float[N,4] x) => (float[N,4] y) {{
    q = QuantizeLinear<axis={axis}>(x, s, z) {clip}
    y = DequantizeLinear<axis={axis}>({codes}, s, z) }}"""


def read(body: str, **weights: np.ndarray):
    (found,) = quantizers(io.load(model(body, **weights)))
    return found


def pair(clip: str = "", axis: int = 1, **weights: np.ndarray):
    return read(PAIR.format(clip=clip, codes="c" if clip else "q", axis=axis), **weights)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_codes_span_their_type(dtype):
    found = read_opset21(dtype)
    assert (found.qmin, found.qmax) == (np.iinfo(dtype).min, np.iinfo(dtype).max)
    assert found.bits == 8 * np.dtype(dtype).itemsize


def read_opset21(dtype):
    body = PAIR.format(clip="", codes="q", axis=1)
    (found,) = quantizers(io.load(model(body, opset=21, ir_version=10, s=np.float32(0.1), z=np.array(3, dtype))))
    return found


def test_clip_between_the_two_narrows_the_codes():
    found = pair("c = Clip(q, lo, hi)", s=np.float32(0.1), z=np.uint8(8), lo=np.uint8(0), hi=np.uint8(15))
    assert (found.qmin, found.qmax, found.bits) == (0, 15, 4)
    assert [node.op_type for node in found.nodes] == ["QuantizeLinear", "Clip", "DequantizeLinear"]


def test_scale_per_channel_has_an_axis_counted_from_the_front():
    found = pair(axis=-1, s=np.full(4, 0.1, np.float32), z=np.zeros(4, np.int8))
    assert found.axis == 1
    assert found.scales.shape == (4,)


def test_missing_zero_point_is_zero_of_uint8():
    found = read(
        "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }", s=np.float32(0.1)
    )
    assert (found.qmin, found.qmax, int(found.zero_points)) == (0, 255, 0)


def test_stored_codes_are_a_weight():
    found = read(
        "(float[N,3] x) => (float[N,2] y) { w = DequantizeLinear(q, s, z) y = MatMul(x, w) }",
        q=np.zeros((3, 2), np.int8),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    assert found.is_weight
    assert found.quantize is None


def test_float_weight_behind_a_pair_is_a_weight():
    found = read(
        """(float[N,3] x) => (float[N,2] y) { q = QuantizeLinear(f, s, z) w = DequantizeLinear(q, s, z) y = MatMul(x, w) }""",
        f=random(3, 2),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    assert found.is_weight
    assert found.quantize is not None


def test_pair_of_different_scales_is_refused():
    body = "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }"
    with pytest.raises(UnsupportedModelError, match="different scales"):
        read(body, s=np.float32(0.1), t=np.float32(0.2), z=np.int8(0))


def test_scale_computed_at_run_time_is_refused():
    body = "(float[N] x, float s) => (float[N] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    with pytest.raises(UnsupportedModelError, match="computed at run time"):
        read(body, z=np.int8(0))


def test_model_with_either_half_counts_as_quantized():
    body = "(float[N] x) => (uint8[N] y) { y = QuantizeLinear(x, s, z) }"
    assert is_quantized(io.load(model(body, s=np.float32(0.1), z=np.uint8(0))))


def test_constant_is_read_from_initializers_and_constant_nodes_only():
    loaded = io.load(
        model(
            "(float[2] x) => (float[2] y) { c = Constant<value_floats=[1.0, 2.0]>() a = Add(x, c) y = Mul(a, w) }",
            w=random(2),
        )
    )
    found = {value.name: constant(value) is not None for node in loaded.graph for value in node.inputs}
    assert found == {"x": False, "c": True, "a": False, "w": True}
    assert constant(None) is None


@pytest.mark.parametrize(
    ("spec", "bounds", "dtype"),
    [
        (Spec(8), (-128, 127), ir.DataType.INT8),
        (Spec(8, narrow=True), (-127, 127), ir.DataType.INT8),
        (Spec(4, signed=False), (0, 15), ir.DataType.UINT8),
        (Spec(2), (-2, 1), ir.DataType.INT8),
    ],
)
def test_spec_says_bounds_and_type(spec, bounds, dtype):
    assert (spec.bounds, spec.dtype) == (bounds, dtype)
