"""A Q/DQ model in pieces: quantizers are switched on in one, and the rest runs as the plain float model.

What comes before a piece runs once, and what comes after it runs without quantizers, as fast as the runtime can. A deep model
is measured several times faster so than whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph import io
from onnxqat.graph.subgraph import between, constant_nodes, subgraph
from onnxqat.graph.subgraph import readers as readers_of
from onnxqat.graph.without import without_quantizers
from onnxqat.runtime import Inference
from onnxqat.runtime.toggles import Toggles, readers

Array = NDArray[Any]
Values = Mapping[str, Array]
#: Pieces at most: with twice as many, the float rest of the model takes most of the time.
MOST = 8


class Piece:
    """One piece, and all behind it.

    Attributes:
        names: names of the quantized values in it, in order of execution.
    """

    def __init__(self, switched: Toggles, rest: Inference | None, kept: Sequence[Values]) -> None:
        self.names = switched.names
        self._switched, self._rest, self._kept = switched, rest, kept

    def outputs(self, *on: str) -> list[list[Array]]:
        """The model's outputs, in order, on each part of the data, with the quantizers of these values on."""
        return [self._outputs(self._switched(on, part), part) for part in self._kept]

    def _outputs(self, computed: Values, part: Values) -> list[Array]:
        return list((computed if self._rest is None else self._rest({**part, **computed})).values())


def pieces(model: ir.Model, parts: Sequence[Values]) -> Iterator[Piece]:
    """The pieces of a Q/DQ model, in order of execution.

    Args:
        model: the model.
        parts: the inputs, a few samples at a time; what is alive between two pieces is held in memory for all of them.
    """
    plain = without_quantizers(model)
    inputs, outputs = ([str(value.name) for value in values] for values in (model.graph.inputs, model.graph.outputs))
    kept: Sequence[Values] = [{name: part[name] for name in inputs} for part in parts]
    for wanted in cuts(model, plain):
        switched = Toggles(ir.from_proto(_part(model, kept[0], [name for name in wanted if name not in kept[0]])))
        computed = [{**part, **switched((), part)} for part in kept]
        alive = [{name: values[name] for name in wanted} for values in computed]
        yield Piece(switched, Inference(_part(plain, alive[0], outputs)), kept)
        kept = alive
    yield Piece(Toggles(ir.from_proto(_part(model, kept[0], outputs))), None, kept)


def _part(model: ir.Model, given: Values, wanted: Sequence[str]) -> onnx.ModelProto:
    """The model between values of these types and others."""
    values = {str(value.name): value for value in model.graph.inputs}
    values |= {str(value.name): value for node in model.graph for value in node.outputs}
    inputs, outputs = ([values[name] for name in names] for names in (given, wanted))
    proto = io.to_proto(subgraph(model, between(model.graph, inputs, outputs), inputs, outputs))
    for value, array in zip(proto.graph.input, given.values(), strict=True):
        value.type.tensor_type.elem_type = ir.DataType.from_numpy(array.dtype)
        value.type.tensor_type.ClearField("shape")
    return proto


def cuts(model: ir.Model, plain: ir.Model) -> list[list[str]]:
    """Names of the values that are alive between pieces, for each place where the model is cut; places lie evenly.

    Every quantizer has all its readers on one side of a cut, and all outputs of the model lie behind it. At each something new is
    alive, and only tensors are.

    Args:
        model: the Q/DQ model.
        plain: the same without quantizers.
    """
    place = {node: number for number, node in enumerate(plain.graph)}
    named = {node.name: number for node, number in place.items()}
    reading = [set(names) for _, names in readers(model) if names]
    if not all(names <= set(named) for names in reading):  # what reads it is no node of the plain model
        return []
    spans = [{named[name] for name in names} for names in reading]
    used_by, constant, outputs = readers_of(plain.graph), constant_nodes(plain.graph), set(plain.graph.outputs)
    alive, found = set(plain.graph.inputs), {}
    for number, node in enumerate(plain.graph):
        alive |= set() if node in constant else set(node.outputs)
        alive = {value for value in alive if any(place[user] > number for user in used_by.get(value, ()))}
        if not outputs.isdisjoint(node.outputs):
            break
        whole = not any(min(span) <= number < max(span) for span in spans)
        if whole and node not in constant and all(isinstance(value.type, ir.TensorType) for value in alive):
            found[number] = sorted(str(value.name) for value in alive)
    even = (len(place) * (cut + 1) / MOST for cut in range(MOST - 1))
    return [found[number] for number in sorted({min(found, key=lambda n: abs(n - at)) for at in even})] if found else []
