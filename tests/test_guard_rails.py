"""Bad outcomes are reported and have an exit status; what can be refused is refused before the work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxqat import Config, fold, insert, pipeline
from tests.models import model, random

NET = "(float[N,8] x) => (float[N,5] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
#: Both halves of every number, then five of them as scores: what is clearly one class stays it at 8 bits.
WEIGHTS = {
    "w": np.hstack([np.eye(8), -np.eye(8)]) + random(8, 16, scale=0.02),
    "v": np.eye(16, 5) + random(16, 5, scale=0.02),
}
WEIGHTS = {name: array.astype(np.float32) for name, array in WEIGHTS.items()}
FLOAT = model(NET, **WEIGHTS, b=random(16, scale=0.02), c=random(5, scale=0.02))
VALUES = model(
    "(float[N,1,4,4] x) => (float[N,1,4,4] y) { y = Conv <pads: ints = [1, 1, 1, 1]> (x, w) }", w=random(1, 1, 3, 3)
)
LABELS = np.arange(512) % 5
ROWS = 2 * np.eye(8, dtype=np.float32)[LABELS] + random(512, 8, scale=0.4)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The float model with labels that it gets right, its Q/DQ and deployed model, and a deployed model of other weights."""
    folder = tmp_path_factory.mktemp("rails")
    np.savez(folder / "data.npz", x=ROWS, label=LABELS)
    np.savez(folder / "test.npz", x=ROWS[:256], label=LABELS[:256])
    np.savez(folder / "scaled.npz", x=255 * (1 - np.abs(ROWS)), label=LABELS)
    np.savez(folder / "unlabelled.npz", x=ROWS)
    np.savez(folder / "shifted.npz", x=ROWS, label=LABELS + 1)
    onnx.save(FLOAT, folder / "float.onnx")
    (folder / "values").mkdir()
    np.savez(folder / "values" / "values.npz", x=random(4, 1, 4, 4))
    onnx.save(VALUES, folder / "values" / "float.onnx")
    qdq = insert(FLOAT, [ROWS])
    onnx.save(qdq, folder / "qdq.onnx")
    onnx.save(fold(qdq), folder / "deployed.onnx")
    onnx.save(insert(FLOAT, [ROWS], Config(target="openvino")), folder / "openvino.onnx")
    bad = model(NET, **WEIGHTS, b=random(16, scale=2.0), c=random(5, scale=2.0))
    onnx.save(fold(insert(bad, [ROWS])), folder / "bad.onnx")
    onnx.save(fold(insert(bad, [ROWS], Config(target="openvino"))), folder / "bad_openvino.onnx")
    return folder


@pytest.fixture
def call(call, folder, monkeypatch) -> Call:
    """Calls the command line in the folder of the files."""
    monkeypatch.chdir(folder)
    return call


@pytest.fixture
def run(call, tmp_path) -> Call:
    def run(*options: object, data: str = "data.npz") -> tuple[int, str, str]:
        output = tmp_path / "out.onnx"
        return call("run", "float.onnx", "--data", data, "--epochs", 1, "-o", output, *options)

    return run


def test_a_run_that_goes_well_scores_the_float_model_first_and_ends_with_0(run):
    status, out, err = run("--test", "test.npz")
    assert status == 0
    assert err.index("float model: accuracy 100.00 %") < err.index("inserted 2 weight")
    assert "summary, judged on test data" in out
    assert "warning" not in err


def test_a_diverged_run_writes_its_file_and_ends_with_1_and_the_cause(run, tmp_path):
    status, out, err = run("--lr", 100, "--json", tmp_path / "r.json")
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: deployed model: accuracy is ")
    assert "(1 allowed" not in last
    assert "1 allowed" in last
    assert "training has diverged" in last
    assert onnx.load(tmp_path / "out.onnx").graph.node
    assert "judged on training data" in out
    verdict = json.loads((tmp_path / "r.json").read_text())["verdict"]
    assert verdict["exceeded"]
    assert verdict["drop"] > verdict["noise"] > 0
    assert verdict["unit"] == "points"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--weight-bits", 4], 0),
        (["--activation-bits", 4], 0),
        (["--weight-bits", 4, "--max-drop", 1], 1),
        (["--max-drop", 100], 0),
    ],
)
def test_with_fewer_bits_the_default_warns_and_a_given_bound_fails(run, options, status):
    found, _, err = run("--lr", 100, *options)
    assert found == status
    assert ("warning: deployed model" in err) == ("--max-drop" not in options)


def test_without_labels_other_answers_are_judged(run):
    options = ["--loss", "distill"]
    status, said, _ = run(*options, data="unlabelled.npz")
    assert status == 0
    assert re.search(r"model +\S agreement .*\n.*\n\S float +\S 100.00 %", said)
    status, _, err = run(*options, "--lr", 100, data="unlabelled.npz")
    assert status == 1
    assert "deployed model: agreement is " in err.splitlines()[-1]


def test_the_float_model_teaches_where_outputs_were_corrected(run, call, tmp_path):
    few = ["--loss", "distill", "--weight-bits", 4]
    assert run(*few, data="unlabelled.npz")[0] == 0
    qdq, trained = tmp_path / "q.onnx", tmp_path / "t.onnx"
    assert call("insert", "float.onnx", "--calibration", "unlabelled.npz", "--weight-bits", 4, "-o", qdq)[0] == 0
    train = ["train", qdq, "--data", "unlabelled.npz", "--loss", "distill", "--epochs", 1, "-o", trained]
    status, _, err = call(*train)
    assert (status, err.count("give the float model as teacher")) == (2, 1)
    assert call(*train, "--teacher", "float.onnx")[0] == 0


def test_a_float_model_at_chance_is_reported_before_the_work(run, monkeypatch):
    def stop(*arguments: object, **settings: object) -> None:
        raise InterruptedError("the work begins")

    monkeypatch.setattr(pipeline, "insert", stop)
    _, _, err = run(data="scaled.npz")
    assert err.index("the float model itself") < err.index("the work begins")
    assert "warning: the float model itself " in err
    assert "input 'x' runs from" in err


REFUSED = {
    "metric": (["--metric", "acuracy"], "metric 'acuracy': is not one of"),
    "loss": (["--loss", "crossentropy"], "loss 'crossentropy': not known"),
    "loss that does not fit": (["--loss", "mse"], "label"),
    "epochs": (["--epochs", 0], "epochs is 0; it must be 1 or more"),
    "gradient": (["--clip-norm", "nan"], "clip_norm is nan; it must be above 0"),
    "accumulation": (["--accumulate", 0], "accumulate is 0; it must be 1 or more"),
    "seed": (["--seed", -1], "seed is -1; it must be 0 or more"),
    "threads": (["--threads", -1], "threads is -1; it must be 0 or more"),
    "rate": (["--lr", 0], "lr"),
    "labels": (["--data", "shifted.npz"], "the model has 5 classes, 0 to 4"),
    "labels of validation": (["--validation", "shifted.npz"], "the model has 5 classes, 0 to 4"),
    "no labels": (["--data", "unlabelled.npz", "--loss", "cross_entropy"], "--loss distill"),
    "teacher without pupils": (
        ["--teacher", "float.onnx", "--loss", "cross_entropy"],
        "teacher: given, but the loss does not distill",
    ),
    "teacher of something else": (["--loss", "distill", "--teacher", "values/float.onnx"], "teacher"),
    "output over the teacher": (["--teacher", "qdq.onnx", "-o", "qdq.onnx"], "is an input of this call"),
    "labels of test": (["--test", "shifted.npz"], "check the labels"),
    "bound": (["--max-drop", -1], "max drop is -1.0; it must be 0 or more"),
    "interpreter": (["--interpreter", "absent/python"], "cannot be started"),
    "output": (["-o", "absent/out.onnx"], "does not exist"),
    "checkpoints": (["--checkpoint", "data.npz"], "data.npz: is not a folder"),
    "nothing to judge by": (
        ["--data", "values.npz", "--loss", "distill", "--max-drop", 1],
        "there are neither labels nor class scores to judge by",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_can_be_refused_is_refused_before_calibration(run, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(pipeline, "insert", lambda *_, **__: pytest.fail("calibration has begun"))
    if "values.npz" in options:
        monkeypatch.chdir("values")
    status, _, err = run(*options)
    assert (status, err.count("error: ")) == (2, 1)
    assert message in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_verify_judges_against_the_float_model_that_is_given(call):
    good = ["verify", "qdq.onnx", "deployed.onnx", "--data", "data.npz", "--float", "float.onnx"]
    status, out, _ = call(*good, "--max-drop", 2)
    assert status == 0
    assert "deployed against float" in out
    bad = ["verify", "qdq.onnx", "bad.onnx", "--data", "data.npz", "--float", "float.onnx"]
    status, out, err = call(*bad, "--max-drop", 2)
    assert status == 1
    assert "2 allowed" in err
    assert "the runtime computes other numbers than training did" in err
    assert "deployed against float" in out
    status, _, err = call(*bad)
    assert status == 0
    assert "warning: deployed model: accuracy is" in err


def test_a_bound_needs_a_float_model(call):
    status, _, err = call("verify", "qdq.onnx", "deployed.onnx", "--data", "data.npz", "--max-drop", 1)
    assert status == 2
    assert "add --float MODEL" in err


@pytest.mark.parametrize(
    ("options", "runtime"),
    [([], "OpenVINO"), (["--runtime", "ort"], "onnxruntime"), (["--runtime", "openvino"], "OpenVINO")],
)
def test_verify_judges_in_the_runtime_that_the_target_names_unless_told_otherwise(call, tmp_path, options, runtime):
    pytest.importorskip("openvino")
    deployed = tmp_path / "d.onnx"
    assert call("fold", "openvino.onnx", "-o", deployed)[0] == 0
    status, out, _ = call("verify", "openvino.onnx", deployed, "--data", "data.npz", *options)
    assert status == 0
    assert re.search(rf"{runtime} [\d.]+\S*, 512 samples", out)
    said = "note: a model made for openvino was run in onnxruntime, whose kernels it is not meant for" in out
    assert said == (runtime == "onnxruntime")


def test_eval_in_another_runtime_than_the_models_says_so(call):
    status, _, err = call("eval", "openvino.onnx", "--data", "data.npz", "--runtime", "ort")
    assert status == 0
    assert "warning: a model made for openvino was run in onnxruntime, whose kernels it is not meant for" in err
    assert call("eval", "qdq.onnx", "--data", "data.npz", "--runtime", "ort")[2] == ""


@pytest.fixture
def run_with_tolerance(call, tmp_path):
    """Calls `run` with a file of NNCF's for accuracy-aware training."""

    def run(degradation: float, *options: object) -> tuple[int, str, str]:
        params = {"maximal_absolute_accuracy_degradation": degradation, "maximal_total_epochs": 2}
        accuracy = {"mode": "early_exit", "params": params}
        file = {"accuracy_aware_training": accuracy, "compression": {"algorithm": "quantization"}}
        (tmp_path / "nncf.json").write_text(json.dumps(file))
        given = ["--data", "data.npz", "--config", tmp_path / "nncf.json", "--target", "ort-cpu", *options]
        return call("run", "float.onnx", *given, "-o", tmp_path / "out.onnx")

    return run


@pytest.mark.parametrize(
    ("degradation", "options", "trained"),
    [(0.5, [], None), (-0.5, [], "epoch 2/2"), (-0.5, ["--epochs", 1], "epoch 1/1")],
    ids=["reached by insertion", "not reached", "other epochs"],
)
def test_tolerance_of_accuracy_ends_training(run_with_tolerance, degradation, options, trained):
    status, _, err = run_with_tolerance(degradation, "--validation", "test.npz", *options)
    assert status == 0
    assert f"training ends at a validation accuracy of {1 - degradation:.4f}; the float model's is 1.0000" in err
    assert ("epoch" in err) == (trained is not None)
    assert trained is None or f"{trained}: train loss" in err


def test_tolerance_that_cannot_be_judged_is_refused(run_with_tolerance):
    assert "is judged on validation data, and none is given; add --validation" in run_with_tolerance(0.5)[2]
    status, _, err = run_with_tolerance(0.5, "--validation", "test.npz", "--loss", "distill")
    assert status == 2
    assert "tolerance of accuracy: the loss gives no accuracy" in err


def test_a_bound_missed_in_another_runtime_than_the_models_points_to_it(call):
    options = ["--data", "data.npz", "--float", "float.onnx", "--max-drop", 0, "--runtime", "ort"]
    status, _, err = call("verify", "openvino.onnx", "bad_openvino.onnx", *options)
    assert status == 1
    assert (
        "made for openvino was run in onnxruntime, whose kernels it is not meant for; judge it with --runtime openvino"
        in err
    )


def test_a_model_of_fixed_batch_takes_batches_of_that_size_in_every_command(call, tmp_path):
    fixed = model(NET.replace("[N,", "[1,"), **WEIGHTS, b=random(16, scale=0.02), c=random(5, scale=0.02))
    float_model, qdq, deployed = (tmp_path / f"{name}.onnx" for name in ("float", "qdq", "deployed"))
    onnx.save(fixed, float_model)
    commands = [
        ["insert", float_model, "--calibration", "test.npz", "-o", qdq],
        ["eval", float_model, "--data", "test.npz"],
        ["verify", qdq, deployed, "--data", "test.npz", "--float", float_model, "--max-drop", 1],
    ]
    onnx.save(fold(insert(fixed, [ROWS[:1]])), deployed)
    for command in commands:
        assert call(*command, "--batch-size", 1)[0] == 0
        status, _, err = call(*command)
        assert status == 2
        assert "--batch-size 1" in err
