"""Judging of ONNX models by ONNX Runtime, one thread."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnxruntime

from tools.benchmark_few_bits.nets import Net
from tools.benchmark_few_bits.task import Judged


def judged(model: onnx.ModelProto, net: Net, measured: Mapping[str, float], *, simulated: bool) -> Judged:
    """Scores of a quantized model; `simulated`: each QuantizeLinear and DequantizeLinear is computed, not fused into kernels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.disable_quant_qdq", str(int(simulated)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return Judged(**net.judge(lambda array: session.run(None, {net.input: array})[0]), **measured)
