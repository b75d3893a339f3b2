"""ONNX Runtime for plain inference: calibration, teachers, evaluation. Training's side of it is behind `train/engine.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import external, files, io

TRAINING_PACKAGES = ("onnxruntime-training-cpu", "onnxruntime-training")
TRAINING_VERSION = "1.19.2"


class Inference:
    """A model loaded for inference on the CPU; call it with a batch.

    Args:
        model: the model.
        outputs: names of the graph outputs to compute; all if None.
    """

    def __init__(self, model: ir.Model | onnx.ModelProto, outputs: Sequence[str] | None = None) -> None:
        self._session = _loaded(model, ort.SessionOptions())
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = list(outputs) if outputs is not None else [value.name for value in self._session.get_outputs()]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, for a batch that may hold more than the model's inputs."""
        try:
            values = self._session.run(self.outputs, {name: batch[name] for name in self.inputs})
        except Exception as error:
            raise InputError(f"model: ONNX Runtime cannot run it on this batch: {short_reason(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def check_loads(model: ir.Model | onnx.ModelProto) -> None:
    """Raises UnsupportedModelError with ONNX Runtime's own reason if it cannot load the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # what it takes its time for
    _loaded(model, options)


def _loaded(model: ir.Model | onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    check_packages()
    # What goes wrong is in the exception too; the log would repeat it.
    options.log_severity_level = 4
    try:
        return _session(model, options)
    except Exception as error:
        raise UnsupportedModelError(f"model: ONNX Runtime cannot load it: {short_reason(error)}") from error


def _session(model: ir.Model | onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session straight from memory, by way of a file only for a model that protobuf cannot hold in one piece."""
    providers = ["CPUExecutionProvider"]
    if external.weight_bytes(model) <= external.TOO_LARGE:
        proto = model if isinstance(model, onnx.ModelProto) else io.to_proto(model)
        return ort.InferenceSession(proto.SerializeToString(), options, providers=providers)
    with files.workplace() as folder:
        path = folder / "model.onnx"
        external.save_linked(model if isinstance(model, ir.Model) else ir.from_proto(model), path)
        # Weights in the order that kernels like best would be copies of all of them.
        options.add_session_config_entry("session.disable_prepacking", "1")
        return ort.InferenceSession(str(path), options, providers=providers)


def short_reason(error: Exception) -> str:
    """ONNX Runtime's own words without codes and source locations, one line of at most 200 characters."""
    text = " ".join(str(error).split())
    for mark in (" Status Message: ", "[ONNXRuntimeError] : ", " was false. "):
        text = text.split(mark)[-1]
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)( const)?( \[with [^\]]*\])? ?", "", text)
    return text if len(text) <= 200 else text[:197] + "..."


def check_packages() -> None:
    """Raises InputError where plain onnxruntime overwrote the training package, whose import name it shares."""
    training = [name for name in TRAINING_PACKAGES if _installed(name)]
    if training and _installed("onnxruntime"):
        raise InputError(
            f"onnxruntime and {training[0]} are installed side by side and overwrite each other; run "
            f"`pip uninstall -y onnxruntime {training[0]} && pip install {training[0]}=={TRAINING_VERSION}`"
        )


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
