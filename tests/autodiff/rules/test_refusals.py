from __future__ import annotations

import numpy as np
import pytest

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from tests.autodiff.rules.against_torch import model, normal

_REFUSED = {
    "a quantizer whose scale is computed": (
        "(float[4] x, uint8 z) => (float[4] y) { m = ReduceMax <keepdims=0> (x) q = QuantizeLinear (x, m, z) "
        "y = DequantizeLinear (q, m, z) }",
        {"z": np.array(0, np.uint8)},
        "scale 'm' is computed at run time",
    ),
    "codes that pass an integer operator": (
        "(float[4] x, float s, uint8 z) => (float[4] y) { m = Abs (s) q = QuantizeLinear (x, m, z) "
        "n = Shape (q) r = Reshape (q, n) c = Cast <to=1> (r) y = Mul (c, s) }",
        {"s": np.array(0.5, np.float32), "z": np.array(0, np.uint8)},
        "QuantizeLinear 'q'",
    ),
    "dynamic quantization": (
        "(float[2,4] x, uint8[4,3] w) => (float[2,3] y) { q, s, z = DynamicQuantizeLinear (x) "
        "a = MatMulInteger (q, w, z) y = Cast <to=1> (a) }",
        {"w": np.ones((4, 3), np.uint8)},
        "DynamicQuantizeLinear.*MatMulInteger",
    ),
    "a sequence": (
        "(float[4] x) => (float[4] y) { s = SequenceConstruct (x, x) i = Constant <value_int=1> () y = SequenceAt (s, i) }",
        {},
        "sequences and optionals are not tensors",
    ),
    "unique elements": ("(float[4] x) => (float[n] y) { y = Unique (x) }", {}, "which elements are equal"),
    "a loop": (
        "(float[4] x) => (float[4] y) { n = Constant <value_int=2> () yes = Constant <value = bool {1}> () y = Loop "
        "(n, yes, x) <body = b (int64 i, bool c, float[4] v) => (bool d, float[4] u) { d = Identity (c) u = Exp (v) }> }",
        {},
        "loops are not differentiated",
    ),
}


@pytest.mark.parametrize(("text", "feeds", "reason"), _REFUSED.values(), ids=_REFUSED.keys())
def test_an_operator_without_gradient_is_refused_with_its_reason(
    text: str, feeds: dict[str, np.ndarray], reason: str
) -> None:
    proto = model(text)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    with pytest.raises(UnsupportedModelError, match=reason):
        gradients(proto, {"x": normal(*shape), **feeds}, ["x"])


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(UnsupportedModelError, match=r"freeze .* exclude .* or replace"):
        gradients(model("(float[4] x) => (float[n] y) { y = Unique (x) }"), {"x": normal(4)}, ["x"])


def test_codes_off_the_way_to_the_loss_do_no_harm() -> None:
    proto = model(
        "(float[4] x, float s, uint8 z) => (float[4] y, uint8[4] q) "
        "{ y = Mul (x, x) m = Abs (s) q = QuantizeLinear (x, m, z) }"
    )
    feeds = {"x": normal(4), "s": np.array(1, np.float32), "z": np.array(0, np.uint8)}
    np.testing.assert_allclose(gradients(proto, feeds, ["x"])[1]["x"], 2 * feeds["x"])


def test_a_draw_gets_no_gradient() -> None:
    proto = model("(float[4] x) => (float[4] y) { d = RandomNormalLike (x) y = Mul (x, d) }")
    outputs, found = gradients(proto, {"x": np.ones(4, np.float32)}, ["x"])
    np.testing.assert_allclose(found["x"], outputs["y"])
