import numpy as np
import pytest

from onnxqat.graph import io
from onnxqat.insertion.groups import Group
from onnxqat.insertion.patterns.elementwise import match
from onnxqat.targets.openvino import TARGET as OPENVINO
from tests.models import model, random

OPERANDS = "(float[N,3] x, float[N,3] z) => (float[N,3] y)"


def matched(proto):
    return match(next(iter(io.load(proto).graph)), OPENVINO)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Min", "Max", "Pow"])
def test_arithmetic_reads_both_operands(operator):
    group = matched(model(f"{OPERANDS} {{ y = {operator}(x, z) }}"))
    assert isinstance(group, Group)
    assert [value.name for value in group.reads] == ["x", "z"]
    assert group.weight is None


def test_concat_reads_all_its_inputs():
    group = matched(model("(float[N,3] x, float[N,3] z) => (float[N,9] y) { y = Concat<axis=1>(x, z, x) }"))
    assert [value.name for value in group.reads] == ["x", "z", "x"]


def test_square_root_reads_one():
    assert len(matched(model("(float[N,3] x) => (float[N,3] y) { y = Sqrt(x) }")).reads) == 1


def test_constant_operand_is_left_in_float_and_named():
    assert (
        "operand 'k' is constant"
        in matched(model("(float[N,3] x) => (float[N,3] y) { y = Mul(x, k) }", k=random(3))).reason
    )


def test_shape_arithmetic_is_no_candidate():
    proto = model("(int64[2] x) => (int64[2] y) { y = Mul(x, k) }", k=np.array([2, 2]))
    assert "not float32" in matched(proto).reason
