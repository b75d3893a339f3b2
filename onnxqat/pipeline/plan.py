"""Plan of a call, without doing it: the model with quantizers whose ranges are not found yet."""

from __future__ import annotations

import logging

import onnx

from onnxqat.config import Config
from onnxqat.config_parts import Range
from onnxqat.data import sources
from onnxqat.graph import io
from onnxqat.insertion import insert


def planned(
    model: io.ModelLike, source: sources.Source, config: Config, sample_axis: int | None = None
) -> onnx.ModelProto:
    """The Q/DQ model that `insert` would make, but for its scales: of the data, only the first batch is read.

    Args:
        model: the float model.
        source: the data.
        config: settings of quantization.
        sample_axis: see `insert`.

    Raises:
        InputError: what `insert` would refuse.
    """
    unread = Range(**{**dict(config.activation_range), "samples": 0})
    settings = {"activation_range": unread, "output_correction": "none"}
    stage = logging.getLogger("onnxqat.insertion")
    level = stage.level
    stage.setLevel(logging.ERROR)  # it would say what it did, and that ranges are missing
    try:
        return insert(model, source, Config(**{**dict(config), **settings}), sample_axis=sample_axis)
    finally:
        stage.setLevel(level)
