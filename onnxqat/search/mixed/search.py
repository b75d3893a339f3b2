"""Chooses a width for each layer's weights: the least loss within a budget, or the smallest model within a drop."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxqat.config import Config
from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.preparation.fixed import with_fixed_inputs
from onnxqat.metrics.table import Function
from onnxqat.names import RuntimeName
from onnxqat.search.mixed import FLOAT, Budget, Mixed
from onnxqat.search.mixed.assign import check_solver
from onnxqat.search.mixed.choice import Choice
from onnxqat.search.mixed.floats import within_drop, within_latency
from onnxqat.search.mixed.judging import judged_drop
from onnxqat.terminal.quiet import quiet

log = logging.getLogger(__name__)

#: Steps of mean width in which the smallest model within a drop is looked for.
STEP = 0.125


def mixed_precision(  # noqa: PLR0913  (the public interface is this flat)
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config | None = None,
    *,
    size: float | None = None,
    bits: float | None = None,
    drop: float | None = None,
    latency: float | None = None,
    widths: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    metric: str | Function = "accuracy",
    samples: int = 256,
    seed: int = 0,
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    threads: int = 2,
    transform: sources.Transform | None = None,
) -> Mixed:
    """Chooses a width for each layer's weights: the least distance from the float model's answers within a budget.

    The distance is estimated to second order from gradients of the float model, without labels (HAWQ-V2, Dong et al. 2020), and
    the widths are chosen by an exact integer program. First and last layers keep `Config.first_last_bits`; activations keep
    the settings' widths, 16 bits by `Config.sixteen` included. For `latency`, and for `drop` where `widths` are the settings'
    and 32, a layer is as the settings have it or in float, its activations too: what the quantizers of each alone cost (see
    `sensitivity`) is weighed against its time in the runtime, and the choice is measured as a whole. Needs the extra `search`.

    Args:
        model: the float model.
        data: batches; labels are needed only for `drop`.
        config: all other settings, the width of activations among them; None: `Config()`.
        size: bits of all weights and constants, over those of the float model.
        bits: mean width of the quantized weights' elements.
        drop: how much worse than the float model the model may be right after insertion, in the unit of `verify`'s `max_drop`.
        latency: time of the deployed model over the float model's on the first batch, on this machine; below 1.
        widths: widths to choose from; 32 stands for float.
        metric: metric that `drop` is judged by.
        samples: samples of the estimate.
        seed: seed of the probes.
        runtime: runtime for `latency`, "ort" or "openvino"; None: the target's.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        threads: how many threads the runtime may use.
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
    budget, config = Budget(size, bits, drop, latency), config or Config()
    check_solver()
    _check(widths, samples, seed)
    source = sources.read(data) if isinstance(data, str | Path) else data
    if latency is not None:
        return within_latency(model, source, config, latency, (runtime, interpreter, threads), transform)
    _check_blocks(config, widths)
    if drop is not None and set(widths) == {config.weight_bits, FLOAT}:
        return within_drop(model, source, config, drop, metric, transform)
    choice = Choice.of(model, source, config, sorted(set(widths)), (samples, seed), transform)
    if drop is None:
        return choice.within(budget)
    return _smallest(choice, model, source, (drop, metric), transform)


def _check(widths: Sequence[int], samples: int, seed: int) -> None:
    wrong = [bits for bits in widths if not 2 <= bits <= 8 and bits != FLOAT]
    if wrong or not widths:
        raise InputError(f"widths {list(widths)}: give one or more from 2 to 8, or 32 for float")
    if samples < 1:
        raise InputError(f"samples is {samples}; it must be 1 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more")


def _check_blocks(config: Config, widths: Sequence[int]) -> None:
    """Raises InputError where weights in blocks, which have 4 bits, would get another width."""
    sizes = [config.weight_block_size, *(o.weight_block_size for o in config.overrides if o.weight_bits is None)]
    for size in filter(None, sizes):
        if set(widths) - {4, FLOAT}:
            raise InputError(
                f"configuration: weight_block_size is {size}, and neither a budget nor the preset int8-mixed chooses widths of "
                "weights in blocks, which have 4 bits; leave one of the two out"
            )


def _smallest(
    choice: Choice,
    model: io.ModelLike,
    data: Any,
    bound: tuple[float, str | Function],
    transform: sources.Transform | None,
) -> Mixed:
    """The smallest model within a drop of a metric, by bisection of the mean width."""
    drop, metric = bound
    original = with_fixed_inputs(model, choice.config.fixed_inputs)
    low, high = (choice.mean(bound) for bound in (min, max))

    def dropped(found: Mixed) -> float:
        with quiet("onnxqat"):
            drop = judged_drop(
                insert(model, data, found.config, transform=transform), data, original, metric, transform
            )
        log.info("mixed precision: %s: drop %.3g", found, drop)
        return drop

    best = choice.made({name: max(widths) for name, widths in choice.losses.items()})
    nearest = dropped(best)
    if nearest > drop:
        raise InputError(
            f"budget: drop={drop:g} cannot be reached by weights alone; the nearest is {nearest:.3g}, at {best}; give "
            "activations more bits, or leave layers in float (preset int8-mixed)"
        )
    while high - low > STEP:
        middle = (low + high) / 2
        found = choice.within(Budget(bits=middle))
        low, high, best = (low, middle, found) if dropped(found) <= drop else (middle, high, best)
    return best
