"""Precision that is raised until the deployed model loses no more than allowed."""

import json

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat import Config
from tests.models import model, outputs, random
from tests.search.test_mixed import NET, WEIGHTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, and data with the network's own answers for labels."""
    made, network, rows = tmp_path_factory.mktemp("raising"), model(NET, **WEIGHTS), random(256, 8, scale=1.0)
    onnx.save(network, made / "float.onnx")
    answers = outputs(network, {"x": rows})[0].argmax(axis=1)
    np.savez(made / "data.npz", x=rows, label=answers)
    np.savez(made / "wrong.npz", x=rows, label=(answers + 1) % 3)
    return made


def run(call, folder, *options):
    given = (
        "--data",
        folder / "data.npz",
        "-o",
        folder / "out.onnx",
        "--json",
        folder / "out.json",
        "--raise-precision",
    )
    status, said, errors = call("run", folder / "float.onnx", *given, *options)
    return status, said, errors, json.loads((folder / "out.json").read_text()) if status < 2 else {}


def test_what_holds_as_configured_is_neither_changed_nor_trained(folder, call):
    status, said, _, found = run(call, folder, "--max-drop", 20)
    assert status == 0
    assert [step["what"] for step in found["path"]] == ["as configured"]
    summary, _, path = said.rpartition("raising precision")
    assert "as configured" in path
    assert "inserted, deployed" in summary
    assert "trained" not in summary.rpartition("summary")[2] + path
    assert found["trained"] is None
    plain = onnxqat.fold(onnxqat.insert(folder / "float.onnx", folder / "data.npz"))
    rows = {"x": np.load(folder / "data.npz")["x"]}
    np.testing.assert_array_equal(outputs(onnx.load(folder / "out.onnx"), rows)[0], outputs(plain, rows)[0])


def test_validation_data_decides_and_test_data_judges(folder, call):
    other = ("--validation", folder / "data.npz", "--test", folder / "wrong.npz")
    _, said, _, found = run(call, folder, "--max-drop", 20, *other)
    assert found["path"][0]["score"] > 0.5 > found["deployed"]
    assert "judged on test data" in said


def test_the_costliest_layers_stay_in_float_until_it_holds(folder, call):
    few = ("--weight-bits", 2, "--activation-bits", 8, "--save-dir", folder / "kept")
    status, _, _, found = run(call, folder, "--max-drop", 6, *few)
    assert status == 0
    *before, last = found["path"]
    assert before
    assert not any(step["holds"] for step in before)
    assert last["what"].startswith("in float: ")
    assert last["drop"] <= 6 < before[0]["drop"]
    assert found["deployed"] == onnxqat.evaluate(folder / "out.onnx", folder / "data.npz")
    assert Config.from_json(folder / "kept" / "config.json").ignore
    assert last["what"] in (folder / "kept" / "report.html").read_text()


def test_it_trains_where_precision_alone_is_not_enough(folder, call):
    few = ("--weight-bits", 2, "--activation-bits", 2, "--lr", "1e-2", "--epochs", 1)
    status, said, _, found = run(call, folder, "--max-drop", 0, *few)
    assert status in (0, 1)
    assert not any(step["holds"] for step in found["path"])
    assert "trained" in said.rpartition("raising precision")[2]


def test_reconstruction_is_refused_beside_it(folder, call):
    status, _, errors, _ = run(call, folder, "--reconstruct")
    assert (status, errors) == (
        2,
        "error: --raise-precision: does not reconstruct blocks; leave --reconstruct and such a preset out\n",
    )
