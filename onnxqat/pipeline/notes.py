"""Notes in a deployed model: what made it, from what, and how good it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnxqat import __version__
from onnxqat.config import Config
from onnxqat.data import sources as datasets
from onnxqat.graph import io
from onnxqat.pipeline.request import Data

#: Keys of a deployed model's metadata, beside the target's.
VERSION, CONFIG, DATA, SCORES = "onnxqat.version", "onnxqat.config", "onnxqat.data", "onnxqat.scores"


def origin(model: io.ModelLike, config: Config, data: Data) -> dict[str, str]:
    """Version, settings that are no defaults, and what the data is known by."""
    return {
        VERSION: __version__,
        CONFIG: config.model_dump_json(exclude_defaults=True),
        DATA: json.dumps(digests(model, data)),
    }


def digests(model: io.ModelLike, data: Data) -> dict[str, str]:
    """SHA-256 of the first batch of each kind of data, by which a change of it shows."""
    named = {"train": data.train, "calibration": data.calibration, "validation": data.validation, "test": data.test}
    loaded = io.load(model, oldest_opset=7)
    return {
        kind: _digest(datasets.batches(data.read(name), loaded)) for kind, name in named.items() if name is not None
    }


def _digest(batches: datasets.Batches) -> str:
    found = hashlib.sha256()
    for batch in islice(batches, 1):
        for name, array in sorted(batch.items()):
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def scores(metric: str, judged_on: str, **known: float | None) -> dict[str, str]:
    """The metric, what it was judged on, and the scores that are known."""
    found: dict[str, Any] = {name: score for name, score in known.items() if score is not None}
    return {SCORES: json.dumps({"metric": metric, "judged_on": judged_on, **found})}


def noted(model: onnx.ModelProto, notes: Mapping[str, str]) -> onnx.ModelProto:
    """The model itself, with these notes in its metadata beside those that it has."""
    present = {one.key: one.value for one in model.metadata_props}
    onnx.helper.set_model_props(model, {**present, **notes})
    return model
