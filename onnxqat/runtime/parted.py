"""Inference on parts of a batch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import Inference
from onnxqat.runtime.devices import CPU, Device
from onnxqat.runtime.splitting import Arrays, Splitting


class Parted:
    """A model that runs on parts of a batch at once.

    Args:
        model: the model.
        outputs: names of the outputs to compute.
        splitting: parts of a batch; None: it stays in one piece, and threads work inside operators.
        threads: number of cores to use; 0: all.
        called: what messages call it.
        device: device that it runs on.

    Attributes:
        inputs: names of the inputs.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str],
        splitting: Splitting | None,
        threads: int = 0,
        called: str = "model",
        device: Device = CPU,
    ) -> None:
        self._crew, self._splitting = Crew(threads or cores()), splitting
        inside = 1 if splitting is not None else threads
        self._run = Inference(model, outputs, called=called, threads=inside, device=device)
        self.inputs = self._run.inputs

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name, for a batch that may hold more than the model's inputs."""
        found = [outputs for _, outputs in self.parts(batch)]
        if self._splitting is None or len(found) == 1:
            return found[0]
        return {name: self._splitting.joined(name, [part[name] for part in found]) for name in found[0]}

    def parts(self, batch: Arrays) -> list[tuple[Arrays, dict[str, NDArray[Any]]]]:
        """Inputs and outputs of each part, in order."""
        read: Mapping[str, NDArray[Any]] = {name: batch[name] for name in self.inputs}
        if self._splitting is None:
            return [(read, self._run(read))]
        pieces = [part.arrays for part in self._splitting.parts(read, self._crew.size)]
        return list(zip(pieces, self._crew([partial(self._run, piece) for piece in pieces]), strict=True))
