"""Execution of training graphs: on what, by what, and how; the same options for all that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, get_args

from onnxqat.errors import InputError
from onnxqat.names import EngineName, LayoutName, MemoryName
from onnxqat.runtime.devices import Device
from onnxqat.runtime.engines import chosen
from onnxqat.training.blocked.probe import block
from onnxqat.training.training_graph.memory import recomputes


class Options(TypedDict, total=False):
    """Fields of `Execution`, as keywords of what trains."""

    threads: int
    layout: LayoutName
    engine: EngineName
    memory: MemoryName
    provider: str


@dataclass(frozen=True)
class Execution:
    """Options of `Trainer`, `as_module` and `as_model` that change how fast they are, and results by no more than rounding.

    Attributes:
        threads: number of cores to use; 0: all.
        layout: "auto": convolutions run in the blocked layout where this processor has kernels for it and they are faster;
            "plain": in the layout that ONNX describes.
        engine: "training", the kernels of onnxruntime-training; "runtime", operators that every onnxruntime has; or "auto", the
            first where it is installed.
        memory: "auto": outputs of quantizers are kept for the backward pass while there is memory for it, else they are computed
            again, with the same results. "low": they are computed again, which takes up to a tenth longer, and `Trainer` keeps
            moments of weights in 8 bits (Dettmers et al. 2022), which changes results a little.
        provider: execution provider of ONNX Runtime that runs the graphs: "cpu", "cuda", or any other that the installed build
            lists. The blocked layout, parts of a batch and the optimizer's steps are matters of the CPU alone.

    Example:
        ```python
        trainer = onnxqat.Trainer("qdq.onnx", threads=2, provider="cpu")
        ```

    Raises:
        InputError: an option is not known, or an engine or a provider is not installed.
    """

    threads: int = 0
    layout: LayoutName = "auto"
    engine: EngineName = "auto"
    memory: MemoryName = "auto"
    provider: str = "cpu"

    def __post_init__(self) -> None:
        # each refuses what it does not know
        if self.layout not in get_args(LayoutName):
            raise InputError(f"layout is {self.layout!r}; it must be one of {', '.join(get_args(LayoutName))}")
        if self.threads < 0:
            raise InputError(f"threads is {self.threads}; it must be 0 or more")
        self.twice, chosen(self.engine), self.device

    @property
    def device(self) -> Device:
        """Device that the graphs run on."""
        return Device.named(self.provider)

    @property
    def block(self) -> int:
        """Channels of a block where convolutions run in the blocked layout; 0: the plain layout (see `blocked`)."""
        return block() if self.layout == "auto" and self.device.is_cpu else 0

    @property
    def twice(self) -> bool:
        """Whether outputs of quantizers are computed again for the backward pass."""
        return recomputes(self.memory)

    @property
    def cuts(self) -> bool:
        """Whether batches are cut into parts, where the graph allows it."""
        return self.threads != 1 and self.device.is_cpu
