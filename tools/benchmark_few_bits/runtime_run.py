"""Judging of ONNX models by ONNX Runtime, one thread."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from models import fashion_mnist
from tools.benchmark_few_bits import data
from tools.benchmark_few_bits.task import Judged


def judged(model: onnx.ModelProto, channel_axis: int, measured: Mapping[str, float], *, simulated: bool) -> Judged:
    """Scores of a quantized model; `simulated`: each QuantizeLinear and DequantizeLinear is computed, not fused into kernels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.disable_quant_qdq", str(int(simulated)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    test, _ = _scores(session, data.test(channel_axis))
    validation, loss = _scores(session, data.validation(channel_axis))
    return Judged(test=test, validation=validation, loss=loss, **measured)


def _scores(session: onnxruntime.InferenceSession, batches: fashion_mnist.Batches) -> tuple[float, float]:
    """Accuracy and mean cross entropy."""
    output = np.concatenate([session.run(None, {"image": batch["image"]})[0] for batch in batches])
    return float((output.argmax(1) == batches.labels).mean()), float(data.cross_entropy(output, batches.labels).mean())
