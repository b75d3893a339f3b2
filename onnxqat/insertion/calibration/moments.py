"""Moments of the outputs of layers, channel by channel, and those of the float model, which calibration notes on its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch

#: Per channel of a layer's output, [3, C]: number of values, their sum, the sum of their squares.
Moments = NDArray[np.float64]


class Noted:
    """The first samples of calibration, and the moments of layers' outputs on them.

    Args:
        layers: the layers.
        samples: how many samples to note.
        folder: an empty one, which holds the samples.

    Attributes:
        sums: moments of each layer's output, by the layer's name.
    """

    def __init__(self, layers: Sequence[ir.Node], samples: int, folder: Path) -> None:
        self.samples, self._layers, self._folder = samples, layers, folder
        self.sums: dict[str, Moments] = {}
        self._files: list[dict[str, Path]] = []

    @property
    def values(self) -> list[ir.Value]:
        """The layers' outputs."""
        return [node.outputs[0] for node in self._layers]

    def take(self, inputs: Mapping[str, NDArray[Any]], computed: Mapping[str, NDArray[Any]]) -> None:
        """Notes what was computed for inputs, all of whose samples count."""
        number = len(self._files)
        self._files.append({name: self._folder / f"{number}_{index}.npy" for index, name in enumerate(inputs)})
        for name, path in self._files[-1].items():
            np.save(path, inputs[name])
        for node in self._layers:
            found = moments(node, computed[str(node.outputs[0].name)])
            self.sums[str(node.name)] = self.sums.get(str(node.name), 0) + found

    def inputs(self) -> Iterator[Batch]:
        """The samples, which are given once."""
        for files in self._files:
            yield {name: np.load(path, allow_pickle=False) for name, path in files.items()}
            for path in files.values():
                path.unlink()


def moments(node: ir.Node, output: NDArray[np.float32]) -> Moments:
    """The moments of a layer's output."""
    stretches = _by_channel(node, output)  # float32 adds up one of them exactly enough, without a copy in double
    squares = np.matmul(stretches[..., None, :], stretches[..., None])[..., 0, 0]
    total, squared = (each.sum(axis=0, dtype=np.float64) for each in (stretches.sum(axis=-1), squares))
    return np.stack([np.full(len(total), stretches.size / len(total)), total, squared])


def channel_axis(node: ir.Node) -> int:
    """The axis of channels of a layer's output."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def _by_channel(node: ir.Node, output: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output as [stretches, C, positions]; what MatMul makes of a vector has no axis of channels, so it has one."""
    weight = node.inputs[1]
    if weight is not None and weight.shape is not None and weight.shape.rank() == 1:
        return output.reshape(-1, 1, 1)
    if channel_axis(node) == 1:
        return output.reshape(*output.shape[:2], -1)
    return np.ascontiguousarray(np.moveaxis(output, -1, 1)).reshape(output.shape[0], output.shape[-1], -1)
