"""What of the tools around TensorRT runs without NVIDIA's packages and without a GPU."""

import onnxqat
from tests.models import batches, model
from tests.models import random as r
from tools import check_tensorrt, compare_modelopt

WEIGHTS = {"w": r(16, 16, 3, 3), "u": r(16, 16, 2, 2)}
NODES = "c = Conv<pads=[1,1,1,1]>(x, w) s = Add(c, x) k = Relu(s) y = ConvTranspose<strides=[2,2]>(k, u)"


def test_placement_says_of_each_node_what_it_reads_as_integers_and_differences_name_it():
    proto = model(f"(float[2,16,8,8] x) => (float[2,16,16,16] y) {{ {NODES} }}", **WEIGHTS)
    qdq = onnxqat.insert(proto, batches(proto, 1), onnxqat.Config(target="tensorrt"))
    ours = compare_modelopt.placement(qdq)
    assert sorted(ours.values()) == [
        "Add(float, int8)",
        "Conv(int8, weight per channel (axis 0))",
        "ConvTranspose(int8, weight per tensor)",
    ]
    (add,) = [name for name, said in ours.items() if said.startswith("Add")]
    theirs = {**ours, add: "Add(int8, int8)", "only there": "Conv(float)"}
    assert [*compare_modelopt.differences(ours, theirs)] == [f"  {add}: Add(float, int8) here, Add(int8, int8) there"]
    assert [*compare_modelopt.differences(ours, ours)] == []


def test_check_without_engines_makes_and_judges_models_in_float16():
    subject = next(check_tensorrt.subjects())
    assert [*check_tensorrt.report(subject, None)] == ["ResNet-20: check {'refused': 0, 'split': 0, 'float': 2}"]
