import numpy as np
import onnx_ir as ir

from onnxqat.graph import io
from onnxqat.graph.edit import constant_value, forget_names, fresh_name, fresh_value_name, shared_constant
from tests.models import model, random


def graph() -> ir.Graph:
    proto = model("(float[N,3] x) => (float[N,2] y) { m = MatMul(x, w) y = Relu(m) }", w=random(3, 2))
    proto.graph.node[0].name = "fc"
    return io.load(proto).graph


def test_initializer_never_takes_the_name_of_another_value():
    names = [constant_value(graph(), name, np.float32(1).reshape(())).name for name in ("new", "w", "m", "x", "y")]
    assert names == ["new", "w_1", "m_1", "x_1", "y_1"]


def test_equal_constants_are_shared_and_different_ones_are_not():
    one = graph()
    first, same, other = (shared_constant(one, "k", np.array([k])) for k in (1, 1, 2))
    assert first is same
    assert other.name == "k_1"


def test_node_names_are_unique():
    one = graph()
    assert [fresh_name(one, "fc"), fresh_name(one, "fc"), fresh_name(one, "other")] == ["fc_1", "fc_2", "other"]


def test_names_are_looked_up_again_once_forgotten():
    one = graph()
    fresh_value_name(one, "a")
    one.register_initializer(ir.val("b", const_value=ir.tensor(np.zeros(1), name="b")))
    forget_names(one)
    assert fresh_value_name(one, "b") == "b_1"
