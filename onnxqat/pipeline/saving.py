"""A folder that keeps all of a run: every stage's model, settings, figures and the page; `compare` reads it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxqat.callbacks import History
from onnxqat.errors import InputError
from onnxqat.graph import files, io
from onnxqat.pipeline import Outcome, notes
from onnxqat.pipeline.effective import effective
from onnxqat.pipeline.request import Data, Training
from onnxqat.process.processor import processor
from onnxqat.search.layers import Layers

MODELS = ("inserted.onnx", "trained.onnx", "deployed.onnx")
CONFIG, RUN, PAGE = "config.json", "run.json", "report.html"


@dataclass(frozen=True)
class Kept:
    """Settings and figures of a run, beside its outcome."""

    training: Training
    data: Data
    history: History
    layers: Layers


def check_folder(folder: Path) -> None:
    """Makes the folder where it is missing.

    Raises:
        InputError: that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: is no folder and cannot be made one ({error.strerror}); choose another") from error


def save(outcome: Outcome, kept: Kept, page: str, folder: Path) -> None:
    """Writes the files, each whole or not at all; `run.json` comes last."""
    for name, model in zip(MODELS, (outcome.inserted, outcome.trained, outcome.deployed), strict=True):
        io.save(io.load(model) if not hasattr(model, "graph") else model, folder / name)
    files.write_text(outcome.config.to_json(), folder / CONFIG, files.JSON)
    from onnxqat.page import write

    write(page, folder / PAGE)
    files.write_text(json.dumps(_run(outcome, kept), indent=2, allow_nan=False), folder / RUN, files.JSON)


def _run(outcome: Outcome, kept: Kept) -> dict[str, Any]:
    return {
        **json.loads(effective(outcome.config, kept.data, kept.training)),
        "command": sys.argv[1:],
        "processor": processor(),
        "sha256": notes.digests(outcome.float_model, kept.data),
        "report": json.loads(outcome.to_json()),
        "history": kept.history.state(),
        "layers": kept.layers.to_dict(),
    }
