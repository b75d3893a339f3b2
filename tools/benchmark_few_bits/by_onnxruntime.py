"""ONNX Runtime's own static quantization, judged by ONNX Runtime. Runs in the peers' environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from models import fashion_mnist
from tools.benchmark_few_bits import data
from tools.benchmark_few_bits.task import Clock, Judged, Task


def run(task: Task) -> dict[str, Judged]:
    """Results of post-training quantization, with a scale per channel and, if processors saturate, 7-bit weights."""
    axis, clock = data.NETS[task.net], Clock()
    with tempfile.TemporaryDirectory() as folder:
        ready, quantized = Path(folder, "ready.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(data.MODELS / f"{task.net}.onnx", ready)
        quantize_static(
            ready,
            quantized,
            _Reader(data.calibration(axis, task.seed)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        measured = clock.read()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(quantized, options, ["CPUExecutionProvider"])
    (test, _), (validation, loss) = (_scores(session, batches) for batches in (data.test(axis), data.validation(axis)))
    return {"ptq": Judged(test=test, validation=validation, loss=loss, **measured)}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration batches, one after the other."""

    def __init__(self, batches: fashion_mnist.Batches) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch's image; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch["image"]}


def _scores(session: onnxruntime.InferenceSession, batches: fashion_mnist.Batches) -> tuple[float, float]:
    """Accuracy and mean cross entropy."""
    outputs, labels = [], []
    for batch in batches:
        outputs += list(session.run(None, {"image": batch["image"]})[0])
        labels += list(batch["label"])
    output, label = np.stack(outputs), np.array(labels)
    return float((output.argmax(1) == label).mean()), float(data.cross_entropy(output, label).mean())
