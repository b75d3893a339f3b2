"""Plan of a call, without doing it: the model with quantizers whose ranges are not found yet."""

from __future__ import annotations

import logging

import onnx

from onnxqat.config import Config
from onnxqat.data import sources
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.terminal.quiet import quiet

log = logging.getLogger(__name__)


def planned(
    model: io.ModelLike, source: sources.Source, config: Config, sample_axis: int | None = None
) -> onnx.ModelProto:
    """The Q/DQ model that `insert` would make, but for its scales and for `Config.sixteen`: only the first batch is read.

    Args:
        model: the float model.
        source: the data.
        config: settings of quantization.
        sample_axis: see `insert`.

    Raises:
        InputError: what `insert` would refuse.
    """
    if config.sixteen is not None:
        log.info("plan: which activations have 16 bits is measured when the model is made; they are shown with 8")
    with quiet("onnxqat.insertion"):  # it would say what it did, and that ranges are missing
        return insert(model, source, config.uncalibrated(), sample_axis=sample_axis)
