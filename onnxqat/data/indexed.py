"""Rows that are read when they are asked for, cut into batches, the next ones in threads while one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.errors import InputError
from onnxqat.process.crew import cores

#: Batches that are read ahead; a step takes longer than the reading of one, or no number of them would help.
AHEAD = 4


class Reader(Protocol):
    """Reads rows by their numbers, from several threads at once."""

    def __len__(self) -> int: ...

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers as a batch."""

    def fitted(self, signature: Signature) -> Reader:
        """The reader for a model of this signature, which settles what its own settings leave open."""


@dataclass(frozen=True)
class Indexed:
    """Rows of a reader, cut into batches; `Trainer.fit` shuffles them in every epoch.

    Attributes:
        reader: reads the rows.
        batch_size: rows per batch; the last one may be smaller.
    """

    reader: Reader
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size is {self.batch_size}; it must be at least 1")

    def fitted(self, signature: Signature) -> Indexed:
        """The rows for a model of this signature."""
        return replace(self, reader=self.reader.fitted(signature))

    def __len__(self) -> int:
        return -(-len(self.reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._ahead(np.arange(len(self.reader)))

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Batches of the rows in random order."""
        return self._ahead(random.permutation(len(self.reader)))

    def _ahead(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        """The batches in order; those that follow the one in use are read by threads."""
        waiting: deque[Future[Batch]] = deque()
        threads = ThreadPoolExecutor(min(AHEAD, cores()), "onnxqat-data")
        try:
            for start in range(0, len(order), self.batch_size):
                waiting.append(threads.submit(self.reader.read, order[start : start + self.batch_size]))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
