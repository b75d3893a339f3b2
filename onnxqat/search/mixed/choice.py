"""Weights of a model with what each width costs them, and the best widths within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Override, Select
from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.without import without_quantizers
from onnxqat.insertion import insert
from onnxqat.runtime.toggles import readers
from onnxqat.search.mixed import FLOAT, Budget, Mixed, counted
from onnxqat.search.mixed.assign import assigned
from onnxqat.search.mixed.fisher import losses
from onnxqat.terminal.quiet import quiet
from onnxqat.verification.rows import in_parts

#: Probes at least, where there are few samples: their mean has a standard error of about a sixth.
PROBES = 64
#: Samples of one probe.
ROWS = 4


@dataclass(frozen=True)
class Choice:
    """Weights with their sizes and what each width costs them.

    Attributes:
        config: the settings around it.
        losses: for each weight, the estimated loss at each width that it can have.
        sizes: elements of each weight.
        nodes: names of the nodes that read each.
        rest: bits of all other constants.
    """

    config: Config
    losses: Mapping[str, Mapping[int, float]]
    sizes: Mapping[str, int]
    nodes: Mapping[str, tuple[str, ...]]
    rest: int

    @classmethod
    def of(
        cls,
        model: io.ModelLike,
        data: Any,
        config: Config,
        widths: Sequence[int],
        sampling: tuple[int, int],
        transform: sources.Transform | None,
    ) -> Choice:
        """Measures what each of these widths costs each weight of a model.

        Args:
            model: the float model.
            data: batches; labels are not needed.
            config: the settings around it.
            widths: widths to choose from, in order.
            sampling: number of samples, and seed of the probes.
            transform: turns an item of the loader into a batch.
        """
        errors: dict[str, dict[int, Any]] = {}
        nodes: dict[str, tuple[str, ...]] = {}
        plain: ir.Model | None = None
        for bits in [bits for bits in widths if bits != FLOAT] or [8]:
            with quiet("onnxqat.insertion"):
                quantized = io.load(
                    insert(
                        model, data, config.uncalibrated().model_copy(update={"weight_bits": bits}), transform=transform
                    )
                )
            plain = plain or without_quantizers(quantized)
            for quantizer, names in readers(quantized):
                array = constant(quantizer.source)
                if array is not None and names:
                    name = str(quantizer.source.name)
                    errors.setdefault(name, {})[quantizer.bits] = quantizer.dequantized - array
                    nodes[name] = names
        assert plain is not None
        if FLOAT in widths:
            for name in errors:
                errors[name][FLOAT] = np.zeros((), np.float32)
        batches, (samples, seed) = sources.batches(data, plain, transform=transform), sampling
        inputs = {str(value.name) for value in plain.graph.inputs}
        parts = chain.from_iterable(in_parts({n: a for n, a in b.items() if n in inputs}, plain, ROWS) for b in batches)
        read = list(islice(parts, -(-samples // ROWS)))
        probed = islice(cycle(read), max(PROBES, len(read)))
        found = losses(plain, _spread(errors), probed, seed)
        sizes, rest = counted(plain, errors)
        return cls(config, found, sizes, nodes, rest)

    @property
    def total(self) -> int:
        """Elements of all weights."""
        return sum(self.sizes.values())

    def mean(self, bound: Any) -> float:
        """Smallest (`min`) or largest (`max`) mean width that there is."""
        return float(sum(self.sizes[name] * bound(widths) for name, widths in self.losses.items())) / self.total

    def within(self, budget: Budget) -> Mixed:
        """The best widths within a budget of size or bits.

        Raises:
            InputError: there are none.
        """
        whole = FLOAT * self.total + self.rest
        most = budget.bits * self.total if budget.bits is not None else (budget.size or 0) * whole - self.rest
        spent = {name: {bits: self.sizes[name] * bits for bits in widths} for name, widths in self.losses.items()}
        chosen = assigned(self.losses, spent, most * (1 + 1e-9))
        if chosen is None:
            low = self.mean(min)
            nearest = (
                f"bits={low:.3g}" if budget.bits is not None else f"size={(low * self.total + self.rest) / whole:.3g}"
            )
            asked = f"bits={budget.bits:g}" if budget.bits is not None else f"size={budget.size:g}"
            ends = self.config.first_last_bits
            kept = f", but {ends} in the first and the last (first_last_bits in --config)" if ends is not None else ""
            raise InputError(
                f"budget: {asked} cannot be reached; the nearest is {nearest}, with the fewest bits in every layer{kept}"
            )
        return self.made(chosen)

    def made(self, chosen: Mapping[str, int]) -> Mixed:
        """The result with these widths."""
        loss = sum(self.losses[name][width] for name, width in chosen.items())
        return Mixed.of(self._settings(chosen), chosen, (self.sizes, self.rest), loss)

    def _settings(self, chosen: Mapping[str, int]) -> Config:
        rules = {node: bits for name, bits in chosen.items() for node in self.nodes[name]}
        overrides = tuple(Override(name=node, weight_bits=bits) for node, bits in rules.items() if bits != FLOAT)
        floats = tuple(Select(name=node) for node, bits in rules.items() if bits == FLOAT)
        return self.config.adding(overrides, floats)


def _spread(errors: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, Any]]:
    """Rounding errors of float64, all of the weight's shape."""
    shapes = {name: np.broadcast_shapes(*(error.shape for error in widths.values())) for name, widths in errors.items()}
    return {
        name: {bits: np.broadcast_to(error, shapes[name]).astype(np.float64) for bits, error in widths.items()}
        for name, widths in errors.items()
    }
