import pytest

from onnxqat.graph import io
from onnxqat.insertion.groups import Group
from onnxqat.insertion.patterns.pooling import match
from onnxqat.targets.openvino import TARGET as OPENVINO
from tests.models import model

NODES = [
    "AveragePool<kernel_shape=[2,2]>(x)",
    "GlobalAveragePool(x)",
    "ReduceMean<axes=[1]>(x)",
    "LeakyRelu(x)",
    "Sigmoid(x)",
]


@pytest.mark.parametrize("node", NODES)
def test_data_is_what_it_reads(node):
    group = match(
        next(iter(io.load(model(f"(float[N,3,4,4] x) => (float[A,B,C,D] y) {{ y = {node} }}")).graph)), OPENVINO
    )
    assert isinstance(group, Group)
    assert [value.name for value in group.reads] == ["x"]


def test_data_of_another_type_is_skipped():
    proto = model("(double[N,3,4,4] x) => (double[N,3,1,1] y) { y = GlobalAveragePool(x) }")
    assert "not float32" in match(next(iter(io.load(proto).graph)), OPENVINO).reason
