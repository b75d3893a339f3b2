"""Choice of the layers that stay in float so that the deployed model is fastest in a runtime on this machine, by trial.

A layer alone says little: what its neighbours are decides whether numbers are quantized and dequantized around it, and in which
layout they come. So whole models are timed, in which a stretch of layers is in float or in integers: all of them, halves,
quarters, down to a few or single ones. What was faster stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onnxqat.config import Config
from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.names import RuntimeName
from onnxqat.search.latency import Faster
from onnxqat.search.latency.timing import FASTER, Floats, leaving, trials
from onnxqat.terminal.progress import track

#: Time of one choice of layers as a multiple of another's.
Ratio = Callable[[Floats, Floats], float]
#: Into how many stretches the layers are cut at most.
PIECES = 32


def faster(
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config | None = None,
    *,
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    threads: int = 2,
    transform: sources.Transform | None = None,
) -> Faster:
    """Chooses the layers that stay in float so that the deployed model is fastest in a runtime, on this machine.

    Models are timed on the first batch of the data, with ranges that are not calibrated. Another machine, or another size of
    batch, may choose otherwise; the settings that are returned give the same model everywhere.

    Args:
        model: the float model.
        data: batches, labels not needed.
        config: all other settings; None: `Config()`.
        runtime: "ort" or "openvino"; None: the target's.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        threads: how many threads the runtime may use.
        transform: turns an item of the loader into a batch.

    Example:
        ```python
        found = onnxqat.faster("model.onnx", "train.npz")
        print(found)
        qdq = onnxqat.insert("model.onnx", "train.npz", found.config)
        ```

    Raises:
        InputError: no layer is faster in integers, the runtime only simulates integers, or an argument is wrong.
    """
    config = config or Config()
    with trials(model, data, config, (runtime, interpreter, threads), transform) as tried:
        layers = tried.layers()
        found = settled(layers, tried.ratio)
        before, ratio = (tried.over_float(floats) for floats in (frozenset(), found))
        if ratio > before:  # many small steps, each by chance
            found, ratio = frozenset(), before
        version = tried.host.version()
    if len(found) == len(layers):
        raise InputError(
            f"model: no layer is faster in integers in {version} on this machine (all take {before:.2f} of float's time); deploy "
            "the float model, or insert without --for latency for a smaller file"
        )
    names = tuple(name for name in layers if name in found)
    return Faster(leaving(config, found), names, len(layers), ratio, before, version)


def settled(layers: Sequence[str], ratio: Ratio) -> Floats:
    """The layers to leave in float: each stretch is turned over, and stays so where that is faster than what was best so far.

    Args:
        layers: names in order of execution.
        ratio: time of one choice over that of another.
    """
    best: Floats = frozenset()
    least = -(-len(layers) // PIECES)
    for start, stop in track(list(stretches(len(layers), least)), "timing layers"):
        stretch = frozenset(layers[start:stop])
        for turned in dict.fromkeys((best | stretch, best - stretch)):
            if turned != best and ratio(turned, best) < FASTER:
                best = turned
    return best


def stretches(count: int, least: int = 1, start: int = 0) -> Iterator[tuple[int, int]]:
    """Beginning and end of all of so many, of their halves, of the halves of these, down to so few or single ones."""
    yield start, start + count
    if count > least:
        yield from stretches(count // 2, least, start)
        yield from stretches(count - count // 2, least, start + count // 2)
