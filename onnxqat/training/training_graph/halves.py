"""A Q/DQ model as a function with a gradient, on arrays that others own, such as another library's tensors.

The gradient graph is cut in two. The forward part gives the outputs, and whatever the backward part reads of it; the backward
part goes from cotangents of the outputs to gradients. Nothing is computed twice, but quantizers where memory
is to be low, as in training (see `memory`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import make_inputs
from onnxqat.graph.ops import FLOAT_TYPES
from onnxqat.graph.qdq import FOLDED, quantizers
from onnxqat.graph.samplewise.fewest import fewest
from onnxqat.graph.samplewise.kinds import Rows
from onnxqat.process.crew import cores
from onnxqat.runtime.engines import kernels
from onnxqat.runtime.splitting import rows_of, sample_axes
from onnxqat.training.execution import Execution
from onnxqat.training.gradients import COTANGENT, add_weighted_sum
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.running.program import Chain, Division, Program
from onnxqat.training.running.values import Floats, Value
from onnxqat.training.training_graph.build import forward_graph, with_values
from onnxqat.training.training_graph.cut import ancestors, cut
from onnxqat.training.training_graph.losses import LOSS
from onnxqat.training.training_graph.memory import schedule
from onnxqat.training.training_graph.parameters import initial_values
from onnxqat.training.training_graph.shared import Borders, borders


@dataclass(frozen=True)
class Halves:
    """The two parts of a gradient graph.

    Attributes:
        forward: from inputs and parameters to the model's outputs and what `backward` reads besides.
        backward: from inputs, parameters, outputs of `forward` and cotangents to gradients.
    """

    forward: Program | Chain
    backward: Program | Chain


class Function:
    """Outputs of a Q/DQ model at given inputs and parameters, and gradients by any of them; holds no arrays itself.

    Args:
        qdq: a model that `load_qdq` returned; it is kept, its constants as initializers.
        execution: how its graphs run.

    Attributes:
        qdq: the model.
        layout: the parameters.
        initial: the flat array of them as the model has it.
        outputs: names of the model's outputs.
        computed: names of those that a node computes; another is an input or an initializer itself.
        differentiable: names of those that are computed, and floats.
        fixed: arrays of outputs that are initializers and no parameters.
        zero_points: those of the quantizers, int32, by initializer name.
        folded: names of weights and biases, and other inputs of their nodes, into which a normalization was folded.
        safety: what keeps its weights from saturating.
    """

    def __init__(self, qdq: ir.Model, execution: Execution | None = None) -> None:
        passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(qdq)
        self.qdq = qdq
        self._forward, self.layout = forward_graph(qdq)
        self.initial = initial_values(self._forward.graph, self.layout)
        graph = self._forward.graph
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self.fixed = {
            name: array
            for name in self.outputs
            if name not in self._parameters and (array := constant(graph.initializers.get(name))) is not None
        }
        found = quantizers(qdq)
        stored = {
            str(q.zero_point.name): q for q in found if q.zero_point is not None and q.zero_point.is_initializer()
        }
        self.zero_points = {name: np.asarray(q.zero_points, np.int32) for name, q in stored.items()}
        sources = {q.output: q.source for q in found}
        read = (
            value for node in qdq.graph if FOLDED in node.metadata_props for value in node.inputs if value is not None
        )
        self.folded = frozenset(str(sources.get(value, value).name) for value in read)
        graph.outputs[:] = [value for value in graph.outputs if value.producer() is not None]
        self.computed = tuple(str(value.name) for value in graph.outputs)
        self.differentiable = tuple(str(value.name) for value in graph.outputs if value.dtype in FLOAT_TYPES)
        self.execution = execution or Execution()
        self.safety = PairSafety(qdq, self.execution.threads)
        self._halves: dict[frozenset[str], Halves] = {}

    def model(self, arrays: Mapping[str, Floats]) -> onnx.ModelProto:
        """The Q/DQ model with these parameters, by initializer name."""
        flat = self.initial.copy()
        for parameter in self.layout.parameters:
            parameter.view(flat)[...] = arrays[parameter.name]
        return ir.to_proto(with_values(self.qdq, self.layout, flat))

    def with_zero_points(self, zero_points: Mapping[str, NDArray[np.int32]]) -> Function:
        """The function with these zero points, by initializer name.

        Raises:
            InputError: they are not of this model: of another shape, or beyond the codes of their quantizer.
        """
        qdq = self.qdq.clone()
        for quantizer in quantizers(qdq):
            name = "" if quantizer.zero_point is None else str(quantizer.zero_point.name)
            if name not in zero_points:
                continue
            array, held = zero_points[name], self.zero_points[name]
            if array.shape != held.shape or not ((quantizer.qmin <= array) & (array <= quantizer.qmax)).all():
                raise InputError(f"zero point {name!r}: is not one of this model; load what its own module has saved")
            value = qdq.graph.initializers[name]
            assert value.dtype is not None
            value.const_value = ir.tensor(array.astype(value.dtype.numpy()), dtype=value.dtype, name=name)
        made = Function(qdq, self.execution)
        if made._parameters != self._parameters:
            raise InputError("zero points: are not of this model; load what its own module has saved")
        return made

    def evaluate(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Only the computed outputs."""
        return self.plain(values)

    @cached_property
    def plain(self) -> Program:
        """The graph of the computed outputs alone."""
        model = self._forward.clone()
        schedule(model, self.computed, self.execution.block)
        make_inputs(model.graph, self._parameters)
        return self._program(model, self._division(model))

    def halves(self, wrt: frozenset[str]) -> Halves:
        """The parts of the gradient graph by these inputs and parameters; built once.

        Raises:
            UnsupportedModelError: a node on the path has no gradient; the message names all of them.
        """
        if wrt not in self._halves:
            model = self._forward.clone()
            add_weighted_sum(model.graph, self.differentiable)
            training = differentiate(model, LOSS, sorted(wrt))
            how = self.execution
            fed = [str(value.name) for value in self.qdq.graph.inputs]
            schedule(training, self.computed, how.block, kernels(how.engine), twice=how.twice, fed=fed)
            make_inputs(training.graph, self._parameters)
            self._halves[wrt] = self._split(training)
        return self._halves[wrt]

    @property
    def _parameters(self) -> list[str]:
        return [parameter.name for parameter in self.layout.parameters]

    def _split(self, training: ir.Model) -> Halves:
        ahead = ancestors(training.graph, set(self.computed))
        crossing = [
            str(value.name)
            for node in training.graph
            if node in ahead
            for value in node.outputs
            if any(use.node not in ahead for use in value.uses())
        ]
        kept = list(dict.fromkeys([*self.computed, *crossing]))
        gradients = [str(v.name) for v in training.graph.outputs if v.name not in self.computed]
        ahead_part = cut(training, {}, kept)
        division = self._division(ahead_part, set(crossing) - set(self.computed))
        behind = None if division is None else self._backward_division(division, gradients)
        found = borders(training, self.execution.threads or cores()) if behind is not None else None
        if found is not None and division is not None:
            return self._sharing(training, found, division, kept, gradients)
        forward = self._program(ahead_part, division)
        types = {name: forward.outputs[name] for name in crossing}
        return Halves(forward, self._program(cut(training, types, gradients), behind))

    def _sharing(
        self, training: ir.Model, at: Borders, division: Division, kept: Sequence[str], gradients: Sequence[str]
    ) -> Halves:
        """The halves, whose parts of a batch share what is computed of weights alone."""
        ahead = [Program(cut(training, {}, names), 1) for names in at.ahead]
        rest = [name for name in kept if name not in at.outputs]
        forward = Chain([ahead, [self._program(cut(training, at.outputs, rest), division)]])
        names = at.of_parts(gradients)
        types = {name: forward.outputs[name] for name in kept if name in forward.outputs}
        parts = self._program(cut(training, types, names), self._backward_division(division, names))
        behind = [Program(cut(training, {**types, **at.gradients}, names), 1) for names in at.behind]
        return Halves(forward, Chain([[parts], behind], inner=at.gradients))

    def _program(self, model: ir.Model, division: Division | None) -> Program:
        return Program(model, self.execution.threads, division, self.execution.device)

    def _division(self, model: ir.Model, local: Container[str | None] = ()) -> Division | None:
        """Parts of a batch for a graph from inputs and parameters to outputs and what the backward part reads."""
        if not self.execution.cuts:
            return None
        found = rows_of(model, self._axes, local)
        if found is None:
            return None
        return Division({n: Rows(axis) for n, axis in self._axes.items()}, found, least=fewest(self.qdq))

    def _backward_division(self, forward: Division, gradients: Sequence[str]) -> Division | None:
        """The same parts on the way back: what comes of parameters is added up."""
        if any(name not in forward.outputs for name in self.differentiable):
            return None
        cotangents = {cotangent(name): forward.outputs[name] for name in self.differentiable}
        inputs = {gradient(name): rows for name, rows in forward.inputs.items()}
        results = {name: inputs[name] for name in gradients if name in inputs}
        samples = {**forward.inputs, **forward.outputs, **cotangents}
        return Division(samples, results, frozenset(gradients) - frozenset(results), forward.least)

    @cached_property
    def _axes(self) -> dict[str, int]:
        return sample_axes(self.qdq)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its model: sessions belong to the process, blocks to the processor."""
        return _unpickled, (io.to_proto(self.qdq).SerializeToString(), self.execution)

    def __deepcopy__(self, memo: object) -> Function:
        """Itself: whoever copies a thing that holds it copies the arrays, and these are elsewhere."""
        return self


def _unpickled(model: bytes, execution: Execution) -> Function:
    return Function(ir.from_proto(onnx.ModelProto.FromString(model)), execution)


def cotangent(output: str) -> str:
    """The name under which the backward part takes an output's cotangent."""
    return f"{output}{COTANGENT}"


def gradient(name: str) -> str:
    """The name under which the backward part gives a gradient."""
    return f"{name}_grad"
