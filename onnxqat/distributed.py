"""Several processes, one run: each takes its rows of every batch, and one all-reduce sums the gradients.

All processes read the same batches in the same order, hold the same parameters and apply the same updates; only the first
writes and prints. torch.distributed carries the numbers and is imported on use: gloo on the CPU; a group that the caller has
initialized, of whatever backend, is used as it is.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.errors import InputError, LostProcessError, MissingExtraError, TrainingError, cut
from onnxqat.process.crew import cores
from onnxqat.process.launch import in_words

Tensors = Mapping[str, NDArray[Any]]

#: Time after which a process considers the others dead; initialize the group yourself for another.
TIMEOUT = timedelta(minutes=5)

_REMEDY = "restart all processes, from the last checkpoint with --resume"


class Ended(SystemExit):
    """This process ends because a signal says so."""


class Workers:
    """The processes of a run; a run of one needs nothing of torch.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._full = 0

    @classmethod
    def join(cls) -> Workers:
        """Joins the processes that torchrun started, or the group that the caller has initialized.

        Raises:
            MissingExtraError: torch is not installed.
            InputError: this process was started alone.
            TrainingError: the others cannot be reached.
        """
        try:
            import torch.distributed as dist
        except ModuleNotFoundError as error:
            raise MissingExtraError("PyTorch is not installed; run `pip install 'onnxqat[distributed]'`") from error
        if not dist.is_initialized():
            if "RANK" not in os.environ:
                raise InputError(
                    "distributed: this process was started alone; start it with torchrun --nproc-per-node N"
                )
            try:
                dist.init_process_group("gloo", timeout=TIMEOUT)
            except (RuntimeError, ValueError) as error:
                raise TrainingError(f"distributed: the processes do not find each other ({_short(error)})") from error
            atexit.register(dist.destroy_process_group)
            _handle_termination()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def threads(self, asked: int) -> int:
        """Cores for this process: what was asked for; else its part of those that it may use (0: all)."""
        if asked or self.size == 1:
            return asked
        return max(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), 1)

    def split(self, batch: Batch, signature: Signature) -> tuple[Batch | None, float]:
        """This process's rows of a batch (None: it gets none), and their share of all its rows.

        Arrays are split along the axes that count samples (see `samples`). A batch smaller than those before it, as the last
        of an epoch may be, is split as evenly as can be; every other must be a multiple of the number of processes.

        Raises:
            InputError: the batch cannot be split evenly, or the model only takes batches of a fixed size.
        """
        if self.size == 1:
            return batch, 1.0
        samples = signature.samples
        rows = samples.rows(batch, list(signature.inputs))
        if rows >= self._full and rows % self.size:
            raise InputError(
                f"batch: has {rows} rows, which {self.size} processes cannot share evenly; choose a batch size that is a "
                f"multiple of {self.size}"
            )
        self._full = max(self._full, rows)
        start, stop = (rows * number // self.size for number in (self.rank, self.rank + 1))
        axes = {name: samples.axis_of(name, array, rows) for name, array in batch.items()}
        for name, (_, shape) in signature.inputs.items():
            axis = axes[name]
            if axis is not None and shape is not None and shape[axis] is not None:
                raise InputError(
                    f"input {name!r}: the model takes {rows} rows, no more and no less, so a batch cannot be shared; "
                    "export it with a dynamic batch"
                )
        part = {name: _cut(array, axes[name], start, stop) for name, array in batch.items()}
        return part if stop > start else None, (stop - start) / rows

    def takes(self, index: int) -> bool:
        """Whether the batch of that number is this process's, where whole batches are shared out."""
        return index % self.size == self.rank

    def mean(self, array: NDArray[np.float32], share: float) -> None:
        """Replaces an array by the mean over all processes, each weighted by its share (all shares sum to 1)."""
        if self.size > 1:
            array *= np.float32(share)
            self.sum(array)

    def sum(self, array: NDArray[Any]) -> None:
        """Replaces an array by the sum over all processes; no copy on the CPU."""
        self._run(lambda dist, tensor: dist.all_reduce(tensor), array)

    def broadcast(self, array: NDArray[Any]) -> None:
        """Replaces an array by the first process's."""
        self._run(lambda dist, tensor: dist.broadcast(tensor, 0), array)

    def gather(self, tensors: Tensors) -> list[Tensors]:
        """The tensors of all processes, by rank; names and shapes may differ from one to the next."""
        if self.size == 1:
            return [tensors]
        contents = [np.frombuffer(safetensors.numpy.save(dict(tensors)), np.uint8).copy()] * self.size
        found: list[Tensors] = []
        for rank in range(self.size):
            found.append(safetensors.numpy.load(self._bytes_of(rank, contents[self.rank])))
        return found

    def from_first(self, load: Callable[[], tuple[Tensors, dict[str, Any]]]) -> tuple[Tensors, dict[str, Any]]:
        """Returns what the first process loads, in every process; where that fails, all fail alike.

        Raises:
            InputError: what `load` raises.
        """
        if self.size == 1:
            return load()
        tensors: Tensors = {}
        told: dict[str, Any] = {}
        if self.is_first:
            try:
                tensors, facts = load()
                told = {"facts": facts, "names": list(tensors)}
            except InputError as error:
                told = {"error": str(error)}
        told = self._told_by_first(told)
        if "error" in told:
            raise InputError(told["error"])
        found = {}
        for name in told["names"]:
            array = self._array_of_first(tensors.get(name))
            if not self.is_first:  # which reads them from its file again when it needs them
                found[name] = array
        return tensors or found, told["facts"]

    def _told_by_first(self, told: Any) -> Any:
        """Words of the first process, in a form that JSON can hold."""
        return json.loads(self._bytes_of(0, np.frombuffer(json.dumps(told).encode(), np.uint8).copy()))

    def _array_of_first(self, array: NDArray[Any] | None) -> NDArray[Any]:
        """The array that the first process has."""
        dtype, shape = self._told_by_first(None if array is None else [array.dtype.str, array.shape])
        content = np.empty(shape, dtype) if array is None else np.array(array, order="C")
        self.broadcast(content.reshape(-1).view(np.uint8))
        return content

    def check_same(self, number: int, message: str) -> None:
        """Raises InputError with the message where the processes do not all have the same number."""
        if self.largest(number) != -self.largest(-number):
            raise InputError(message)

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes have."""
        numbers = np.array([number], np.int64)
        self._run(lambda dist, tensor: dist.all_reduce(tensor, dist.ReduceOp.MAX), numbers)
        return int(numbers[0])

    def _bytes_of(self, rank: int, content: NDArray[np.uint8]) -> bytes:
        """The bytes that one process holds, on all of them."""
        length = np.array([content.size], np.int64)
        self._run(lambda dist, tensor: dist.broadcast(tensor, rank), length)
        received = content if self.rank == rank else np.zeros(int(length[0]), np.uint8)
        self._run(lambda dist, tensor: dist.broadcast(tensor, rank), received)
        return received.tobytes()

    def _run(self, collective: Callable[[Any, Any], object], array: NDArray[Any]) -> None:
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(array)
        # NCCL only moves what lies on a GPU
        moved = tensor.cuda(int(os.environ.get("LOCAL_RANK", 0))) if dist.get_backend() == "nccl" else tensor
        try:
            collective(dist, moved)
        except RuntimeError as error:
            _take_time()
            raise LostProcessError(
                f"another process of the run has died or does not answer ({_short(error)}); {_REMEDY}"
            ) from error
        if moved is not tensor:
            tensor.copy_(moved)


def _cut(array: NDArray[Any], axis: int | None, start: int, stop: int) -> NDArray[Any]:
    return array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]


def _end(number: int, frame: FrameType | None) -> None:
    """Ends this process with a message, by SystemExit, which no handler of errors on the way catches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    words = in_words(f"ended by SIGTERM, as torchrun does when another process of the run has died; {_REMEDY}")
    print(words, file=sys.stderr, flush=True)
    raise Ended(1)


def _handle_termination() -> None:
    """Lets SIGTERM, with which torchrun ends all processes when one has died, end this one with a message."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _take_time() -> None:
    """Gives this process time to report its own error and to save its work before torchrun ends it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _short(error: Exception) -> str:
    """The end of what torch says, where the reason is, on one line."""
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(lines[0].split()).split("] ")[-1].rstrip(".")
    return cut(text, 160)
