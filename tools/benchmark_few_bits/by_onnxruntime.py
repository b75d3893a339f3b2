"""ONNX Runtime's own static quantization, judged by ONNX Runtime. Runs in the peers' environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tools.benchmark_few_bits.nets import Batch, net
from tools.benchmark_few_bits.runtime_run import judged
from tools.benchmark_few_bits.task import Clock, Judged, Task


def run(task: Task) -> dict[str, Judged]:
    """Results of post-training quantization, with a scale for each output channel."""
    source = net(task.net)
    calibration, clock = source.calibration(task.seed), Clock()
    with tempfile.TemporaryDirectory() as folder:
        ready, quantized = Path(folder, "ready.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(source.model, ready)
        quantize_static(
            ready,
            quantized,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return {"ptq": judged(onnx.load(quantized), source, clock.read(), simulated=False)}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration batches, one after the other."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = ({name: each[name] for name in each if name != "label"} for each in batches)

    def get_next(self) -> Batch | None:
        """The next batch's inputs; None at the end."""
        return next(self._batches, None)
