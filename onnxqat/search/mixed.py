"""Mixed precision: a width for each layer's weights under a budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Override, Select
from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.without import without_quantizers
from onnxqat.insertion import insert
from onnxqat.insertion.preparation.fixed import with_fixed_inputs
from onnxqat.metrics.table import Function
from onnxqat.search.assign import assigned, check_solver
from onnxqat.search.fisher import losses
from onnxqat.search.quiet import quiet
from onnxqat.search.toggles import readers
from onnxqat.verification.rows import in_parts
from onnxqat.verification.run import verify

log = logging.getLogger(__name__)

#: Width that stands for float.
FLOAT = 32
#: Probes at least, where there are few samples: their mean has a standard error of about a sixth.
PROBES = 64
#: Samples of one probe, and steps of mean width in which the smallest model within a drop is looked for.
ROWS, STEP = 4, 0.125


@dataclass(frozen=True)
class Budget:
    """Bound that mixed precision must keep to; exactly one is given.

    Attributes:
        size: bits of all weights and constants, over those of the float model.
        bits: mean width of the quantized weights' elements.
        drop: how much worse than the float model the model may be right after insertion (see `verify`); the smallest is chosen.
    """

    size: float | None = None
    bits: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError("budget: give exactly one of size, bits and drop")
        ((name, value),) = given.items()
        if not (np.isfinite(value) and value > 0) and not (name == "drop" and value == 0):
            raise InputError(f"budget: {name} is {value}; it must be above 0")

    @classmethod
    def parsed(cls, text: str) -> Budget:
        """`size=0.2`, `bits=4.5` or `drop=0.5` of the command line.

        Raises:
            InputError: it is none of these.
        """
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in ("size", "bits", "drop") or not np.isfinite(number):
            raise InputError(
                f"--budget {text}: is not size=NUMBER, bits=NUMBER or drop=NUMBER, such as size=0.2; fix it"
            )
        return cls(**{name: number})


@dataclass(frozen=True)
class Mixed:
    """Result of `onnxqat.mixed_precision`.

    Attributes:
        config: settings with a width for each layer; `insert` takes it, and a file of it can be edited.
        widths: width of each weight by its name; 32 for float.
        size: bits of all weights and constants over those of the float model. Codes of fewer than 8 bits count as packed, which a
            deployed file does for 4 bits in blocks alone.
        bits: mean width over the quantized weights' elements.
        loss: estimated distance from the float model's answers, in sum over the samples.

    Example:
        ```python
        found = onnxqat.mixed_precision("model.onnx", "train.npz", bits=4.5)
        print(found.widths, found.size)
        ```
    """

    config: Config
    widths: Mapping[str, int]
    size: float
    bits: float
    loss: float

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(Counter(self.widths.values()).items()))
        return f"{self.bits:.2f} bits a weight, {self.size:.3f} of float: {counts}".replace("32 bits", "float")


def mixed_precision(  # noqa: PLR0913  (the public interface is this flat)
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config | None = None,
    *,
    size: float | None = None,
    bits: float | None = None,
    drop: float | None = None,
    widths: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    metric: str | Function = "accuracy",
    samples: int = 256,
    seed: int = 0,
    transform: sources.Transform | None = None,
) -> Mixed:
    """Chooses a width for each layer's weights: the least distance from the float model's answers within a budget.

    The distance is estimated to second order from gradients of the float model, without labels (HAWQ-V2, Dong et al. 2020), and
    the widths are chosen by an exact integer program. First and last layers keep `Config.first_last_bits`; activations keep
    their width. Needs the extra `search`.

    Args:
        model: the float model.
        data: batches; labels are needed only for `drop`.
        config: all other settings, the width of activations among them; None: `Config()`.
        size: bits of all weights and constants, over those of the float model.
        bits: mean width of the quantized weights' elements.
        drop: how much worse than the float model the model may be right after insertion, in the unit of `verify`'s `max_drop`.
        widths: widths to choose from; 32 stands for float.
        metric: metric that `drop` is judged by.
        samples: samples of the estimate.
        seed: seed of the probes.
        transform: turns an item of the loader into a batch.

    Example:
        ```python
        found = onnxqat.mixed_precision("model.onnx", "train.npz", bits=4.5)
        print(found)
        qdq = onnxqat.insert("model.onnx", "train.npz", found.config)
        ```

    Raises:
        InputError: the budget cannot be reached, and the message says the nearest that can; or an argument is wrong.
        MissingExtraError: the extra is not installed.
    """
    budget, config = Budget(size, bits, drop), config or Config()
    check_solver()
    _check(widths, samples)
    source = sources.read(data) if isinstance(data, str | Path) else data
    choice = _Choice.of(model, source, config, sorted(set(widths)), (samples, seed), transform)
    if drop is None:
        return choice.within(budget)
    return _smallest(choice, model, source, drop, metric)


def _check(widths: Sequence[int], samples: int) -> None:
    wrong = [bits for bits in widths if not 2 <= bits <= 8 and bits != FLOAT]
    if wrong or not widths:
        raise InputError(f"widths {list(widths)}: give one or more from 2 to 8, or 32 for float")
    if samples < 1:
        raise InputError(f"samples is {samples}; it must be 1 or more")


def _smallest(choice: _Choice, model: io.ModelLike, data: Any, drop: float, metric: str | Function) -> Mixed:
    """The smallest model within a drop, by bisection of the mean width."""
    original = with_fixed_inputs(model, choice.config.fixed_inputs)
    low, high = (choice.mean(bound) for bound in (min, max))

    def dropped(found: Mixed) -> float:
        with quiet("onnxqat"):
            qdq = insert(model, data, found.config)
            verdict = verify(qdq, fold(qdq), data, float_model=original, metric=metric).verdict
        if verdict is None:
            raise InputError(
                "budget: drop cannot be judged, as there are neither labels nor class scores; give size or bits"
            )
        log.info("mixed precision: %s: drop %.3g", found, verdict.drop)
        return verdict.drop

    best = choice.made({name: max(widths) for name, widths in choice.losses.items()})
    nearest = dropped(best)
    if nearest > drop:
        raise InputError(
            f"budget: drop={drop:g} cannot be reached by weights alone; the nearest is {nearest:.3g}, at {best}"
        )
    while high - low > STEP:
        middle = (low + high) / 2
        found = choice.within(Budget(bits=middle))
        low, high, best = (low, middle, found) if dropped(found) <= drop else (middle, high, best)
    return best


@dataclass(frozen=True)
class _Choice:
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
    ) -> _Choice:
        errors: dict[str, dict[int, Any]] = {}
        nodes: dict[str, tuple[str, ...]] = {}
        plain: ir.Model | None = None
        for bits in widths if widths != [FLOAT] else [8, FLOAT]:
            if bits == FLOAT:
                continue
            with quiet("onnxqat.insertion"):
                quantized = io.load(insert(model, data, _weights_alone(config, bits), transform=transform))
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
        tensors = {str(v.name): constant(v) for v in plain.graph.initializers.values()}
        sizes = {name: int(array.size) for name, array in tensors.items() if name in errors and array is not None}
        rest = sum(8 * array.nbytes for name, array in tensors.items() if name not in errors and array is not None)
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
        chosen = assigned(self.losses, self.sizes, most * (1 + 1e-9))
        if chosen is None:
            low = self.mean(min)
            nearest = (
                f"bits={low:.3g}" if budget.bits is not None else f"size={(low * self.total + self.rest) / whole:.3g}"
            )
            asked = f"bits={budget.bits:g}" if budget.bits is not None else f"size={budget.size:g}"
            raise InputError(
                f"budget: {asked} cannot be reached; the nearest is {nearest}, with the fewest bits in every layer"
            )
        return self.made(chosen)

    def made(self, chosen: Mapping[str, int]) -> Mixed:
        """The result with these widths."""
        whole = FLOAT * self.total + self.rest
        bits = sum(self.sizes[name] * width for name, width in chosen.items())
        loss = sum(self.losses[name][width] for name, width in chosen.items())
        return Mixed(self._settings(chosen), chosen, (bits + self.rest) / whole, bits / self.total, loss)

    def _settings(self, chosen: Mapping[str, int]) -> Config:
        rules = {node: bits for name, bits in chosen.items() for node in self.nodes[name]}
        overrides = tuple(Override(name=node, weight_bits=bits) for node, bits in rules.items() if bits != FLOAT)
        floats = tuple(Select(name=node) for node, bits in rules.items() if bits == FLOAT)
        given = dict(self.config)
        return Config(
            **{**given, "overrides": (*self.config.overrides, *overrides), "ignore": (*self.config.ignore, *floats)}
        )


def _weights_alone(config: Config, bits: int) -> Config:
    """The settings with weights of this width; no data is read, and nothing changes weights."""
    ranges = config.activation_range.model_copy(update={"samples": 0})
    return Config(**{**dict(config), "weight_bits": bits, "activation_range": ranges, "output_correction": "none"})


def _spread(errors: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, Any]]:
    """Rounding errors of float64, all of the weight's shape."""
    shapes = {name: np.broadcast_shapes(*(error.shape for error in widths.values())) for name, widths in errors.items()}
    return {
        name: {bits: np.broadcast_to(error, shapes[name]).astype(np.float64) for bits, error in widths.items()}
        for name, widths in errors.items()
    }
