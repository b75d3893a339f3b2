"""Runs a model over batches part by part, while it changes between the parts: what a later part reads is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.errors import UnsupportedModelError
from onnxqat.graph import io
from onnxqat.graph.subgraph import between, constant_nodes, read, readers, subgraph
from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import Inference

Array = NDArray[Any]

#: Bytes of values that are kept in memory; what is beyond lies in files.
IN_MEMORY = 2**27


class Parts:
    """Values of a model over batches; each node runs once, however many values are asked for one after the other.

    Nodes that only initializers decide run again in each part that reads them, since these may change.

    Args:
        model: the model; a node must not change once it has run, its initializers may.
        wanted: the nodes whose outputs will be asked for, in order of execution.
        batches: the inputs.
        folder: an empty one; it holds what is alive of all batches and has no room in memory.
        ends: values that are asked for at last, all together.
        threads: number of cores, each of which runs a batch of its own; 0: all.

    Attributes:
        count: number of batches.
        kept: the values that are kept: the model's inputs, and those that nodes to come read.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Iterable[ir.Node],
        batches: Iterable[Batch],
        folder: Path,
        ends: Sequence[ir.Value] = (),
        threads: int = 0,
    ) -> None:
        self._model, self._folder, self._ends = model, folder, ends
        self._memory: dict[tuple[ir.Value, int], Array] = {}
        self._room = IN_MEMORY
        nodes = between(model.graph, (), {value for node in wanted for value in node.outputs} | set(ends))
        self._constant = constant_nodes(nodes)
        self._readers = readers(nodes)
        self._done: set[ir.Node] = set()
        self._inputs = {value for value in model.graph.inputs if not value.is_initializer()}
        self.kept = set(self._inputs)
        self.count = 0
        for batch in batches:
            for value in self._inputs:
                self._store(value, self.count, batch[str(value.name)])
            self.count += 1
        self._crew = Crew(max(min(threads or cores(), self.count), 1))

    def run(self, node: ir.Node) -> Iterator[Array]:
        """The node's first output, batch by batch."""
        if not self.count:
            return
        part = between(self._model.graph, self.kept, node.outputs)
        self._done.update(part)
        made = [value for each in part if each not in self._constant for value in each.outputs]
        results = [value for value in made if value is node.outputs[0] or self._is_alive(value)]
        for number, arrays in self._computed(part, results, range(self.count)):
            for value in results:
                self._store(value, number, arrays[str(value.name)])
            yield arrays[str(node.outputs[0].name)]
        self.kept.update(results)
        for value in [value for value in self.kept if not self._is_alive(value)]:
            self.kept.remove(value)
            for number in range(self.count):
                self._drop(value, number)

    def ends(self, every: int = 1) -> Iterator[dict[str, Array]]:
        """The values in `ends` by name, of one of so many batches, when all nodes that are wanted have run."""
        part = between(self._model.graph, self.kept, self._ends)
        lacking = [value for value in self._ends if value not in self.kept]
        for number, arrays in self._computed(part, lacking, range(0, self.count, every)):
            yield arrays | {str(v.name): self.load(v, number) for v in self._ends if v in self.kept}

    def change(self, value: ir.Value, change: Callable[[Array], Array]) -> None:
        """Replaces what has been computed of a value by what later parts are to read."""
        for number in range(self.count if value in self.kept else 0):
            self._store(value, number, change(self.load(value, number)))

    def _computed(
        self, nodes: list[ir.Node], outputs: list[ir.Value], numbers: range
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """Outputs of nodes from what is kept, batch by batch, as many at once as there are threads."""
        if not (outputs and numbers):
            yield from ((number, {}) for number in numbers)
            return
        inputs = [value for value in self.kept if any(value in read(node) for node in nodes)]
        size = self._crew.size
        run = _loaded(self._proto(nodes, inputs, outputs), [str(value.name) for value in outputs], int(size > 1))

        def computed(number: int) -> dict[str, Array]:
            return run({str(value.name): self.load(value, number) for value in inputs})

        for group in (numbers[first : first + size] for first in range(0, len(numbers), size)):
            yield from zip(group, self._crew([partial(computed, number) for number in group]), strict=True)

    def _is_alive(self, value: ir.Value) -> bool:
        return value in self._inputs or value in self._ends or not self._readers.get(value, set()) <= self._done

    def _proto(self, nodes: list[ir.Node], inputs: list[ir.Value], outputs: list[ir.Value]) -> Any:
        proto = io.to_proto(subgraph(self._model, nodes, inputs, outputs))
        for value, given in zip(inputs, proto.graph.input, strict=True):
            given.type.tensor_type.elem_type = ir.DataType.from_numpy(self.load(value, 0).dtype)
            given.type.tensor_type.ClearField("shape")
        return proto

    def _file(self, value: ir.Value, number: int) -> Path:
        return self._folder / f"{id(value)}_{number}.npy"

    def _store(self, value: ir.Value, number: int, array: Array) -> None:
        if (value, number) in self._memory or array.nbytes <= self._room:
            self._room -= 0 if (value, number) in self._memory else array.nbytes
            self._memory[value, number] = array
        else:
            np.save(self._file(value, number), array)

    def _drop(self, value: ir.Value, number: int) -> None:
        if (value, number) in self._memory:
            self._room += self._memory.pop((value, number)).nbytes
        else:
            self._file(value, number).unlink()

    def inputs(self) -> Iterator[Batch]:
        """The model's inputs, batch by batch."""
        return ({str(value.name): self.load(value, number) for value in self._inputs} for number in range(self.count))

    def load(self, value: ir.Value, number: int) -> Array:
        """A value, as it is kept of a batch."""
        if (value, number) in self._memory:
            return self._memory[value, number]
        loaded: Array = np.load(self._file(value, number), allow_pickle=False)
        return loaded


def _loaded(proto: onnx.ModelProto, outputs: list[str], threads: int) -> Inference:
    try:
        return Inference(proto, outputs, threads=threads)
    except (
        UnsupportedModelError
    ):  # ONNX Runtime 1.19 cannot load a Clip of an input before a quantizer with its optimizations
        return Inference(proto, outputs, exactly=True, threads=threads)
