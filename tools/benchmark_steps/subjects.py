"""Networks that are trained, and their batches, as files that every contestant reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import onnxqat
from onnxqat.graph.without import without_quantizers
from tools.networks import bert, mobilenetv2, recurrent, resnet18

RESNET20 = Path(__file__).parents[2] / "models/resnet20.onnx"


@dataclass(frozen=True)
class Subject:
    """A network and its batch.

    Attributes:
        title: for the table.
        network: makes the float model.
        rows: samples of a batch.
        loss: name of the loss: labels are classes, or of the output's shape.
    """

    title: str
    network: Callable[[], onnx.ModelProto]
    rows: int
    loss: str = "cross_entropy"

    def write(self, folder: Path) -> None:
        """Writes the float model, the Q/DQ model and the batch."""
        model, random = self.network(), np.random.default_rng(0)
        (image,), output = model.graph.input, _sizes(model.graph.output[0])
        data = random.standard_normal((self.rows, *_sizes(image)), dtype=np.float32)
        label = (
            random.integers(0, output[-1], self.rows)
            if self.loss == "cross_entropy"
            else random.standard_normal((self.rows, *output), dtype=np.float32)
        )
        qdq = onnxqat.insert(model, [{image.name: data[:2]}])
        onnxqat.save(qdq, folder / "qdq.onnx")
        onnxqat.save(
            ir.to_proto(without_quantizers(ir.from_proto(qdq))), folder / "float.onnx"
        )  # normalizations folded
        np.savez(folder / "batch.npz", **{image.name: data, "label": label})


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


#: Convolutional networks, and others.
IMAGES = (
    Subject("ResNet-20, 28², 128", lambda: onnx.load(RESNET20), 128),
    Subject("ResNet-18, 224², 8", resnet18, 8),
    Subject("MobileNetV2, 224², 8", mobilenetv2, 8),
)
OTHERS = (
    Subject("BERT-like, 128 tokens, 8", lambda: bert(384, 6, 6, 128), 8, "mse"),
    Subject("LSTM, 100 frames, 8", lambda: recurrent(256, 256, 100), 8, "mse"),
)
