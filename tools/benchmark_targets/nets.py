"""The networks, each with its data and a score; and the targets, each with what runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from models import fashion_mnist
from onnxqat.names import RuntimeName
from tools.real_models.model import Batch, Data, Examples, share_right
from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import CALIBRATION_BATCHES

#: Test images that are judged where nothing is emulated.
LARGE = 2000


@dataclass(frozen=True)
class Net:
    """A float network and its data.

    Attributes:
        title: for the table.
        path: function that gives its file.
        data: function from "train", "calibration" or "test" to batches.
        score: function from the first output on every batch, and all labels, to one number; higher is better.
        images: number of test images that are judged in an emulator.
        trained: whether it is trained with quantizers; inserted alone otherwise.
        classes: axis of the first output whose largest number is the answer; None: it has no such answer.
        unit: of its score.
    """

    title: str
    path: Callable[[], Path]
    data: Callable[[str], list[Examples]]
    score: Callable[[list[np.ndarray], list[Any]], float]
    images: int
    trained: bool = True
    classes: int | None = 1
    unit: str = "%"


@dataclass(frozen=True)
class Way:
    """A target in one of its configurations.

    Attributes:
        title: for the table.
        target: its name.
        runtime: what runs it.
        how: "run" in the runtime itself, "emulated", or "simulated" in float.
        settings: of `onnxqat.Config`.
        fixed: whether the deployed model takes one image at a time, as emulators do, slowly.
        own: function from a float model and calibration data to the model that the runtime's own quantizer makes of them.
        pretrained: whether the pretrained models are run on it too.
    """

    title: str
    target: str
    runtime: RuntimeName
    how: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False
    own: Callable[[onnx.ModelProto, Sequence[Batch]], onnx.ModelProto] | None = None
    pretrained: bool = True


def _fashion(name: str, layout: str, images: int) -> Net:
    folder = Path(fashion_mnist.__file__).parent

    def data(part: str) -> list[Examples]:
        return _examples(getattr(fashion_mnist, f"{part}{layout}")())

    return Net(name, lambda: folder / f"{name}.onnx", data, share_right, images)


def _trained(name: str, title: str, images: int) -> Net:
    def networks() -> Any:
        from tools import trained_networks  # imports PyTorch

        return trained_networks

    return Net(
        title,
        lambda: networks().path(name),
        lambda part: _examples(networks().batches(name, part)),
        share_right,
        images,
    )


def _examples(batches: Any) -> list[Examples]:
    return [Examples({"image": batch["image"]}, list(batch["label"])) for batch in batches]


def _pretrained(model: RealModel) -> Net:
    @cache
    def data() -> Data:
        return model.data()

    def part(name: str) -> list[Examples]:
        return data().test if name == "test" else data().train[:CALIBRATION_BATCHES]

    classes = {"ocr": 2, "super_resolution": None, "sentences": None}.get(model.name, 1)
    count = {"super_resolution": 2, "orientation": 50, "sentences": 50, "file_type": 50}.get(model.name, 200)
    return Net(
        model.title, lambda: model.path, part, lambda *made: data().score(*made), count, False, classes, model.unit
    )


NETS = {
    "resnet20": _fashion("resnet20", "", 2000),
    "separable": _fashion("separable", "_nhwc", 10_000),
    "bert": _trained("bert", "BERT-like", 2000),
    "lstm": _trained("lstm", "LSTM", 2000),
    "unet": _trained("unet", "U-Net-like", 200),
    **{model.name: _pretrained(model) for model in MODELS},
}


def by_onnxruntime(model: onnx.ModelProto, calibration: Sequence[Batch]) -> onnx.ModelProto:
    """The model as ONNX Runtime's quantizer makes it with its configuration for QNN, as it stands."""
    from onnxruntime.quantization import CalibrationDataReader, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"image": image[None]} for batch in calibration for image in batch["image"]])

        def get_next(self) -> Batch | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        source, plain, ready, result = (Path(folder, f"{n}.onnx") for n in ("float", "plain", "ready", "quantized"))
        fixed = onnx.ModelProto.FromString(model.SerializeToString())
        for value in (*fixed.graph.input, *fixed.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(fixed, source)
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        taken = ready if qnn_preprocess_model(plain, ready, fuse_layernorm=True) else plain
        quantize(taken, result, get_qnn_qdq_config(taken, Reader()))
        return onnx.load(result)


_QNN = partial(Way, target="qnn", runtime="qnn", how="emulated", fixed=True)

_FP8 = {"weight_type": "fp8", "activation_type": "fp8"}

#: One entry for each target. A new one needs the name of its runtime here, and its settings.
WAYS = {
    "ort-cpu": Way("`ort-cpu`", "ort-cpu", "ort", "run"),
    "openvino": Way("`openvino`", "openvino", "openvino", "run"),
    "tensorrt": Way("`tensorrt`", "tensorrt", "ort", "simulated"),
    "tensorrt-fp8": Way("`tensorrt`, fp8", "tensorrt", "ort", "simulated", _FP8, pretrained=False),
    "qnn": _QNN("`qnn`", own=by_onnxruntime),
    "qnn-auto": _QNN("`qnn`, `--sixteen auto`", settings={"sixteen": "auto"}, pretrained=False),
    "qnn-16": _QNN("`qnn`, 16 bits", settings={"activation_bits": 16}, pretrained=False),
    "xnnpack": Way("`xnnpack`", "xnnpack", "ort", "run"),
    "webgpu": Way("`webgpu`", "webgpu", "ort", "run"),
}
