"""What experiment trackers hold of a run, each in a process of its own: they keep threads and processes."""

import json
import os
import subprocess
import sys

import pytest

from onnxqat.callbacks import MLflow, WandB
from onnxqat.errors import MissingExtraError
from tests.classifier import write

TRAIN = """
import json, sys
from pathlib import Path
import onnxqat
from onnxqat.callbacks import JsonLines, MLflow, WandB
folder = Path(sys.argv[1])
tracker = MLflow(f"file://{folder}/ml", "some", "first") if sys.argv[2] == "mlflow" else WandB("p", mode="offline", dir=folder)
callbacks = [tracker, JsonLines(folder / "log.jsonl")]
onnxqat.Trainer(folder / "qdq.onnx").fit(folder / "data.npz", epochs=2, callbacks=callbacks)
"""
READ = """
import mlflow
(run,) = mlflow.search_runs(output_format="list", experiment_names=["some"])
client = mlflow.MlflowClient()
history = {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
print(json.dumps({"name": run.info.run_name, "status": run.info.status, **history}))
"""


def trained(folder, tracker, more=""):
    write(folder)
    environment = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true"}
    code = [sys.executable, "-c", TRAIN + more, str(folder), tracker]
    return subprocess.run(code, env=environment, capture_output=True, text=True, check=True).stdout


def test_mlflow_holds_losses_rates_and_metrics_of_a_finished_run(tmp_path):
    pytest.importorskip("mlflow")
    found = json.loads(trained(tmp_path, "mlflow", READ).splitlines()[-1])
    steps = [one for one in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "step" in one]
    assert (found["name"], found["status"]) == ("first", "FINISHED")
    assert found["train/loss"] == [[one["step"], one["loss"]] for one in steps]
    assert found["train/lr"] == [[one["step"], one["lr"]] for one in steps]
    assert [step for step, _ in found["epoch/train_loss"]] == [1, 2]


def test_wandb_keeps_an_offline_run_with_losses_and_metrics(tmp_path):
    pytest.importorskip("wandb")
    trained(tmp_path, "wandb")
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    names = (b"train/loss", b"train/lr", b"epoch/train_loss")
    assert [name for name in names if name not in kept.read_bytes()] == []


@pytest.mark.parametrize(("kind", "package"), [(MLflow, "mlflow"), (WandB, "wandb")])
def test_a_missing_tracker_names_the_extra(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"{package} is not installed; run `pip install 'onnxqat\[{package}\]'`"
    ):
        kind()
