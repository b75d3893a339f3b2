from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError

_BRANCHES = (
    "then_branch = doubled () => (float[n,m] r) { two = Constant <value_float=2.0> () r = Mul (x, two) }, "
    "else_branch = tripled () => (float[n,m] r) { two = Constant <value_float=3.0> () r = Mul (x, two) }"
)


def _model(inputs: str, condition: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 17]> g ({inputs}) => (float[n,m] y) '
        f"{{ {condition} y = If (taken) <{_BRANCHES}> }}"
    )


@pytest.mark.parametrize(("value", "slope"), [(1, 2.0), (0, 3.0)])
def test_a_constant_condition_takes_its_branch(value: int, slope: float) -> None:
    proto = _model(
        "float[2,3] x",
        f"zero = Constant <value_int=0> () number = Constant <value_int={value}> () taken = Greater (number, zero)",
    )
    outputs, found = gradients(proto, {"x": np.ones((2, 3), np.float32)}, ["x"])
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(found["x"], np.full((2, 3), slope, np.float32))


def test_a_condition_on_a_static_size_is_decided() -> None:
    proto = _model(
        "float[2,3] x",
        "s = Shape (x) one = Constant <value_ints=[1]> () three = Constant <value_ints=[3]> () "
        "width = Gather (s, one) same = Equal (width, three) taken = Squeeze (same)",
    )
    _, found = gradients(proto, {"x": np.ones((2, 3), np.float32)}, ["x"])
    np.testing.assert_array_equal(found["x"], np.full((2, 3), 2.0, np.float32))


def test_a_condition_on_data_is_refused_by_name() -> None:
    proto = _model("float[2,3] x, bool taken_in", "taken = Not (taken_in)")
    proto.graph.node[-1].name = "choice"
    feeds = {"x": np.ones((2, 3), np.float32), "taken_in": np.array(True)}
    with pytest.raises(UnsupportedModelError, match="If 'choice': its condition depends on data"):
        gradients(proto, feeds, ["x"])


def test_branches_within_branches_are_resolved_and_their_initializers_kept() -> None:
    inner = (
        "then_branch = a () => (float[2] q) <float[2] w = {4, 5}> { q = Mul (x, w) }, "
        "else_branch = b () => (float[2] q) { q = Neg (x) }"
    )
    outer = (
        f"then_branch = c () => (float[2] r) {{ q = If (yes) <{inner}> r = Add (q, x) }}, "
        "else_branch = d () => (float[2] r) { r = Identity (x) }"
    )
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y) <bool yes = {{1}}> '
        f"{{ y = If (yes) <{outer}> }}"
    )
    outputs, found = gradients(proto, {"x": np.ones(2, np.float32)}, ["x"])
    np.testing.assert_array_equal(outputs["y"], [5, 6])
    np.testing.assert_array_equal(found["x"], [5, 6])
