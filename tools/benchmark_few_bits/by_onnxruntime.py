"""ONNX Runtime's own static quantization, judged by ONNX Runtime. Runs in the peers' environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from models import fashion_mnist
from tools.benchmark_few_bits import data
from tools.benchmark_few_bits.runtime_run import judged
from tools.benchmark_few_bits.task import Clock, Judged, Task


def run(task: Task) -> dict[str, Judged]:
    """Results of post-training quantization, with a scale for each output channel."""
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
        return {"ptq": judged(onnx.load(quantized), axis, clock.read(), simulated=False)}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration batches, one after the other."""

    def __init__(self, batches: fashion_mnist.Batches) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch's image; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch["image"]}
