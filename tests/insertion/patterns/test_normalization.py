import pytest

from onnxqat.graph import io
from onnxqat.insertion.groups import Group
from onnxqat.insertion.patterns.normalization import match
from onnxqat.targets.qnn import TARGET as QNN
from tests.models import model
from tests.models import random as r

WEIGHTS = {"s": r(4) + 1, "b": r(4)}


def matched(nodes: str, outputs: str = "float[N,4,4] y"):
    return match(next(iter(io.load(model(f"(float[N,4,4] x) => ({outputs}) {{ {nodes} }}", **WEIGHTS)).graph)), QNN)


@pytest.mark.parametrize("node", ["LayerNormalization(x, s, b)", "InstanceNormalization(x, s, b)"])
def test_data_is_what_it_reads_and_the_scale_a_constant_operand(node):
    group = matched(f"y = {node}")
    assert isinstance(group, Group)
    assert [value.name for value in (*group.reads, *group.constants)] == ["x", "s"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        ("y = LayerNormalization<axis=1>(x, s, b)", "float[N,4,4] y", "more than the last axis"),
        ("y, m = LayerNormalization(x, s, b)", "float[N,4,4] y, float[N,4,1] m", "mean or deviation"),
        ("s2 = Neg(x) y = LayerNormalization(x, s2, b)", "float[N,4,4] y", "computed at run time"),
    ],
)
def test_other_forms_are_skipped_with_their_reason(nodes, outputs, reason):
    proto = model(f"(float[N,4,4] x) => ({outputs}) {{ {nodes} }}", **WEIGHTS)
    node = next(node for node in io.load(proto).graph if node.op_type == "LayerNormalization")
    assert reason in match(node, QNN).reason
