"""Runs a model over batches part by part, while it changes between the parts: what a later part reads is kept in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.graph import io
from onnxqat.graph.nesting import captured_values
from onnxqat.runtime import Inference

Array = NDArray[Any]


class Parts:
    """Values of a model over batches; each node runs once, however many values are asked for one after the other.

    Nodes that only initializers decide run again in each part that reads them, since these may change.

    Args:
        model: the model; a node must not change once it has run, its initializers may.
        wanted: the nodes whose outputs will be asked for, in order of execution.
        batches: the inputs.
        folder: an empty one; it holds what is alive of all batches.
    """

    def __init__(self, model: ir.Model, wanted: Iterable[ir.Node], batches: Iterable[Batch], folder: Path) -> None:
        self._model, self._folder = model, folder
        nodes = _needed(model.graph, {value for node in wanted for value in node.outputs}, ())
        self._constant = _constant(nodes)
        self._readers: dict[ir.Value, set[ir.Node]] = {}
        for node in nodes:
            for value in _read(node):
                self._readers.setdefault(value, set()).add(node)
        self._done: set[ir.Node] = set()
        self._kept = {value for value in model.graph.inputs if value in self._readers}
        self._count = 0
        for batch in batches:
            for value in self._kept:
                self._store(value, self._count, batch[str(value.name)])
            self._count += 1

    def run(self, node: ir.Node) -> Iterator[Array]:
        """The node's first output, batch by batch."""
        if not self._count:
            return
        part = _needed(self._model.graph, set(node.outputs), self._kept)
        self._done.update(part)
        made = [value for each in part if each not in self._constant for value in each.outputs]
        results = [value for value in made if value is node.outputs[0] or self._is_alive(value)]
        inputs = [value for value in self._kept if any(value in _read(each) for each in part)]
        # ONNX Runtime 1.19 cannot load a Clip of an input before a quantizer with its optimizations
        run = Inference(self._proto(part, inputs, results), [str(value.name) for value in results], exactly=True)
        for number in range(self._count):
            arrays = run({str(value.name): self._load(value, number) for value in inputs})
            for value in results:
                self._store(value, number, arrays[str(value.name)])
            yield arrays[str(node.outputs[0].name)]
        self._kept.update(results)
        for value in [value for value in self._kept if not self._is_alive(value)]:
            self._kept.remove(value)
            for number in range(self._count):
                self._file(value, number).unlink()

    def change(self, value: ir.Value, change: Callable[[Array], Array]) -> None:
        """Replaces what has been computed of a value by what later parts are to read."""
        for number in range(self._count if value in self._kept else 0):
            self._store(value, number, change(self._load(value, number)))

    def _is_alive(self, value: ir.Value) -> bool:
        return not self._readers.get(value, set()) <= self._done

    def _proto(self, nodes: list[ir.Node], inputs: list[ir.Value], outputs: list[ir.Value]) -> Any:
        graph = self._model.graph
        read = {value for node in nodes for value in _read(node)}
        initializers = [value for value in graph.initializers.values() if value in read]
        view = ir.GraphView(
            inputs, outputs, nodes=nodes, initializers=initializers, opset_imports=graph.opset_imports, name=graph.name
        )
        proto = io.to_proto(ir.Model(view, ir_version=self._model.ir_version))  # type: ignore[arg-type]
        for value, given in zip(inputs, proto.graph.input, strict=True):
            given.type.tensor_type.elem_type = ir.DataType.from_numpy(self._load(value, 0).dtype)
            given.type.tensor_type.ClearField("shape")
        return proto

    def _file(self, value: ir.Value, number: int) -> Path:
        return self._folder / f"{id(value)}_{number}.npy"

    def _store(self, value: ir.Value, number: int, array: Array) -> None:
        np.save(self._file(value, number), array)

    def _load(self, value: ir.Value, number: int) -> Array:
        loaded: Array = np.load(self._file(value, number), allow_pickle=False)
        return loaded


def _read(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *captured_values(node)) if value is not None]


def _needed(graph: ir.Graph, wanted: set[ir.Value], given: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that compute the wanted values from the given ones, in order of execution."""
    nodes, needed = [], wanted.difference(given)
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(value for value in _read(node) if value not in given)
    return nodes[::-1]


def _constant(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes that no input of the model reaches."""
    found: set[ir.Node] = set()
    for node in nodes:
        if all(value.is_initializer() or value.producer() in found for value in _read(node)):
            found.add(node)
    return found
