"""Runs what the parts of a batch have in common (see `training_graph.shared`), on as many threads as there are cores to use."""

from __future__ import annotations

from collections.abc import Mapping

from onnxqat.process.crew import Crew
from onnxqat.runtime.devices import CPU
from onnxqat.training.running.lanes import Places, Session
from onnxqat.training.running.values import Double, Floats, aligned
from onnxqat.training.training_graph.parameters import Layout
from onnxqat.training.training_graph.shared import Shared


class Weights:
    """Quantized weights, for all parts of a batch, and the way of their gradients back.

    Args:
        shared: the graphs.
        layout: place of each parameter.
        parameters: where the parameters are.

    Attributes:
        parts: graph of the parts.
        quantized: where the quantized weights are.
        gradients: names of the gradients that the parts give instead of those of parameters, by the names of these.
    """

    def __init__(self, shared: Shared, layout: Layout, parameters: Places) -> None:
        self.parts, weights = shared.parts, shared.weights
        self.gradients = {one.parameter: one.gradient for one in weights}
        flat = aligned(layout.size)
        views = layout.named(flat)
        self.quantized = Double(flat, CPU), {one.output: views[one.parameter] for one in weights if one.output}
        self._ahead, self._behind = ([Session.of(model, 1) for model in some] for some in (shared.ahead, shared.behind))
        for session in self._ahead:
            session.bind_parts([parameters], [self.quantized])
        for session in self._behind:
            session.bind_parts([parameters, self.quantized], [])
        results = {str(value.name) for value in shared.parts.graph.outputs}
        self._others = sorted(results - set(self.gradients.values()))

    def quantize(self, crew: Crew) -> None:
        """Quantizes the weights as they are now."""
        crew.map(Session.run, self._ahead)

    def finish(self, crew: Crew, total: Mapping[str, Floats], results: Places) -> None:
        """Writes the results of the batch, given the sum of those of its parts in other arrays."""
        for session in self._behind:
            session.bind_views(total)
            session.bind_parts([], [results])
        crew.map(Session.run, self._behind)
        for name in self._others:
            results[1][name][...] = total[name]
