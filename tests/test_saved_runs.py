"""Runs that are kept in folders, their notes in the deployed model, and their comparison."""

import json
import shutil

import numpy as np
import onnx
import pytest

from onnxqat import Config, Select, __version__, evaluate
from tests.classifier import LABELS, ROWS, write
from tests.page.browser import opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write(tmp_path_factory.mktemp("saved"))
    np.savez(made / "data.npz", x=np.tile(ROWS, (4, 1)), label=np.tile(LABELS, 4))
    return made


def run(call, folder, name, *options):
    given = (
        "--data",
        folder / "data.npz",
        "-o",
        folder / f"{name}.onnx",
        "--max-drop",
        100,
        "--save-dir",
        folder / "runs" / name,  # neither folder is there yet
    )
    return call("run", folder / "float.onnx", *given, *options)


@pytest.fixture
def runs(folder, call):
    if not (folder / "runs").exists():
        assert run(call, folder, "a")[0] == 0
        assert run(call, folder, "b", "--weight-bits", 4, "--lr", "1e-3")[0] == 0
    return [folder / "runs" / "a", folder / "runs" / "b"]


def test_a_folder_keeps_models_settings_figures_and_the_page(runs, folder):
    names = ["config.json", "deployed.onnx", "inserted.onnx", "report.html", "run.json", "trained.onnx"]
    assert sorted(path.name for path in runs[1].iterdir()) == names
    assert Config.from_json(runs[1] / "config.json").weight_bits == 4
    kept = json.loads((runs[1] / "run.json").read_text())
    assert kept["report"]["deployed"] == evaluate(runs[1] / "deployed.onnx", folder / "data.npz")
    assert kept["training"]["lr"] == 1e-3
    assert len(kept["history"]["steps"]) == 3
    assert [layer["node"] for layer in kept["layers"]["layers"]]


def test_the_deployed_file_says_what_made_it_and_how_good_it_is(runs, folder):
    notes = {one.key: one.value for one in onnx.load(folder / "b.onnx").metadata_props}
    assert notes["onnxqat.version"] == __version__
    assert notes["onnxqat.target"] == "ort-cpu"
    assert json.loads(notes["onnxqat.config"]) == {
        "weight_bits": 4,
        "activation_range": {"type": "mse", "samples": 1024},
    }
    assert len(json.loads(notes["onnxqat.data"])["train"]) == 64
    scores = json.loads(notes["onnxqat.scores"])
    assert scores["deployed"] == evaluate(folder / "b.onnx", folder / "data.npz")
    assert set(scores) == {"metric", "judged_on", "float", "inserted", "trained", "deployed"}


def test_compare_shows_rules_without_what_they_leave_open(runs, folder, call):
    other = folder / "other"
    shutil.copytree(runs[0], other)
    kept = json.loads((other / "run.json").read_text())
    kept["quantization"]["ignore"] = [Select(name="first").model_dump(mode="json")]
    (other / "run.json").write_text(json.dumps(kept))
    said = call("compare", runs[0], other)[1]
    assert '[{"name": "first"}]' in said


def test_compare_shows_scores_and_the_settings_that_differ(runs, folder, call):
    status, said, _ = call("compare", *runs, "--json", folder / "c.json", "--report", folder / "c.html")
    assert status == 0
    assert "quantization.weight_bits" in said
    found = json.loads((folder / "c.json").read_text())
    assert found["differences"]["quantization.weight_bits"] == {"a": "8", "b": "4"}
    assert set(found["differences"]) == {"quantization.weight_bits", "training.lr"}
    assert [one["run"] for one in found["runs"]] == ["a", "b"]
    with opened(folder / "c.html", width=360) as (tab, complaints):
        assert [head.inner_text() for head in tab.query_selector_all("h2")] == ["Runs", "Curves", "Layers"]
        assert complaints == []


def test_a_folder_that_no_run_was_saved_to_is_refused(folder, call):
    status, _, errors = call("compare", folder)
    assert (status, errors) == (
        2,
        f"error: {folder}: holds no run.json; give folders that `onnxqat run --save-dir` wrote\n",
    )


def test_compare_shows_the_agreement_with_the_float_model_where_there_are_no_labels(folder, call):
    np.savez(folder / "unlabelled.npz", x=np.tile(ROWS, (4, 1)))
    assert run(call, folder, "c", "--data", folder / "unlabelled.npz")[0] == 0
    assert call("compare", folder / "runs" / "c", "--json", folder / "c.json")[0] == 0
    verdict = json.loads((folder / "runs" / "c" / "run.json").read_text())["report"]["verdict"]
    (found,) = json.loads((folder / "c.json").read_text())["runs"]
    assert [found[key] for key in ("metric", "float", "inserted", "trained", "deployed")] == [
        "agreement",
        "100.00 %",
        "",
        "",
        f"{100 * verdict['deployed_score']:.2f} %",
    ]


@pytest.mark.parametrize("page", [[], ["--report", "r.html"]], ids=["table", "page"])
@pytest.mark.parametrize(
    ("part", "value", "fact"),
    [
        ("layers", None, "layers: it must be an object (is None)"),
        (
            "history",
            {"steps": [[1]]},
            "history.steps.0: List should have at least 2 items after validation, not 1 (is [1])",
        ),
        ("training", [], "training: it must be an object (is [])"),
    ],
)
def test_a_run_that_was_changed_by_hand_is_refused_where_it_is_read(runs, tmp_path, call, page, part, value, fact):
    kept = json.loads((runs[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**kept, part: value}))
    status, said, errors = call("compare", runs[0], tmp_path, *page)
    assert (status, said) == (2, "")
    assert errors == f"error: {tmp_path}/run.json: is no run of onnxqat: {fact}; save the run again\n"


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_work(folder, call):
    status, _, errors = run(call, folder, "../float.onnx")
    assert status == 2
    assert errors.startswith(f"error: {folder / 'runs/../float.onnx'}: is no folder and cannot be made one (")
