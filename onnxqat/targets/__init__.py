"""What each runtime does with quantized nodes, one file per target: what it fuses, carries and keeps in float.

Insertion, folding and verification read the same tables. Another target is a file here, and its line in `TARGETS`.
"""

from onnxqat.errors import InputError
from onnxqat.names import RuntimeName
from onnxqat.targets.facts import Target
from onnxqat.targets.openvino import OPENVINO
from onnxqat.targets.ort_cpu import ORT_CPU, PER_TENSOR

__all__ = ["OPENVINO", "ORT_CPU", "PER_TENSOR", "TARGETS", "Target", "of_runtime", "target"]

TARGETS = {one.name: one for one in (ORT_CPU, OPENVINO)}


def target(name: str) -> Target:
    """The table of a target.

    Raises:
        InputError: there is no table for it yet.
    """
    if name not in TARGETS:
        raise InputError(f"target {name!r}: not supported yet; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def of_runtime(runtime: RuntimeName) -> Target:
    """The table of the first target that runs in a runtime."""
    return next(one for one in TARGETS.values() if one.runtime == runtime)
