"""What of the tools around TensorRT runs without NVIDIA's packages and without a GPU."""

import json
from dataclasses import replace

import numpy as np

import onnxqat
from onnxqat.graph import io
from onnxqat.runtime import Inference
from tests.models import batches, model
from tests.models import random as r
from tools import check_tensorrt, compare_modelopt
from tools.benchmark_targets import measure, nets
from tools.readme import cells

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


def test_models_for_engines_are_made_and_their_answers_judged(tmp_path, monkeypatch):
    for module, name, value in (
        (nets, "NETS", {"resnet20": replace(nets.NETS["resnet20"], trained=False)}),
        (measure, "FOLDER", tmp_path),
        (measure, "LARGE", 32),
    ):
        for user in (module, measure, check_tensorrt):
            if hasattr(user, name):
                monkeypatch.setattr(user, name, value)
    said = check_tensorrt.make("resnet20", "tensorrt", tmp_path)
    assert said == "resnet20.tensorrt: check {'refused': 0, 'split': 0, 'float': 2}"
    made = tmp_path / "resnet20.tensorrt"
    expected = dict(np.load(made / "expected.npz"))
    data = [next(iter(Inference(io.load(made / "weak.int8.onnx"))(batch).values())) for batch in batches_of(made)]
    np.savez(made / "outputs.npz", **{str(number): array for number, array in enumerate(data)})
    layers = {"a": "fp32 -> int8", "b": "int8+int8 -> fp32", "c": "int8 -> int8"}
    engine = {"layers": layers, "milliseconds": 1.0, "float_milliseconds": 2.0, "tensorrt": "8.6", "gpu": "one"}
    (made / "engine.json").write_text(json.dumps(engine))
    ((key, line),) = check_tensorrt.judge(tmp_path)
    assert key == "resnet20/tensorrt"
    assert cells(line)[2:4] == ["2 of 3", "0.50"]
    assert cells(line)[6] == "100.00 %"
    assert [array.shape for array in data] == [array.shape for array in expected.values()]


def batches_of(folder):
    """What the file without TensorRT's import reads."""
    with np.load(folder / "data.npz") as arrays:
        return [{key.split(":", 1)[1]: arrays[key]} for key in sorted(arrays.files)]
