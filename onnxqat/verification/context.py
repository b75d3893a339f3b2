"""Models compiled for a device, without the device: QNN's context binaries."""

from __future__ import annotations

import os
import re

import onnx

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.verification.host import opened


def compiled(model: io.ModelLike, device: str, interpreter: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
    """Compiles a deployed model for Qualcomm's NPU.

    Args:
        model: the deployed model.
        device: the device as `SOC/ARCH`, the numbers of QNN's options `soc_model` and `htp_arch`: 60/75 is a Snapdragon 8 Gen 3.
        interpreter: Python interpreter of the environment that has onnxruntime-qnn; None: this one.

    Returns:
        A model of one node, which holds what the NPU loads. It runs in ONNX Runtime with QNN alone.

    Raises:
        InputError: the device is not written so, the runtime is missing or refuses the model.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", device)
    if numbers is None:
        raise InputError(
            f"device {device!r}: is not SOC/ARCH; write two numbers, such as 60/75 for a Snapdragon 8 Gen 3"
        )
    with opened("qnn", interpreter) as host:
        proto = onnx.load(host.compiled(io.load(model), soc_model=numbers[1], htp_arch=numbers[2]))
    if not any(node.op_type == "EPContext" for node in proto.graph.node):
        raise InputError("model: QNN takes no part of it; insert it for the target qnn")
    return proto
