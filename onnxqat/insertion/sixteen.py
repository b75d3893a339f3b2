"""Values that lose most with 8 bits: measured, each quantizer alone, at the outputs of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.data.samples import Samples
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.runtime.toggles import Toggles

#: Samples to measure on.
ROWS = 16
#: Share of the noise that the chosen values make together. On a BERT-like network it takes as many values as the residual
#: streams, with all that Softmax and normalizations read, and leaves 4 dB less noise.
SHARE = 0.6
TINY = float(np.finfo(np.float32).tiny)


def values_that_lose(quantized: onnx.ModelProto, batch: Batch) -> frozenset[str]:
    """Names of the fewest activations whose quantizers make most of the noise at the outputs; noises of several add up.

    Args:
        quantized: the Q/DQ model, with 8 bits.
        batch: inputs, of which the first few samples are read.
    """
    model = io.load(quantized)
    names = {str(one.source.name) for one in quantizers(model) if not one.is_weight}
    run, samples = Toggles(model), Samples.of(model)
    few = samples.first(batch, [str(v.name) for v in model.graph.inputs], ROWS)
    expected = run((), few)
    noise = {name: _noise(expected, run([name], few)) for name in run.names if name in names}
    order = sorted(noise, key=lambda name: -noise[name])
    total = np.cumsum([noise[name] for name in order])
    return (
        frozenset(order[: 1 + int(np.searchsorted(total, SHARE * total[-1]))]) if order and total[-1] else frozenset()
    )


def _noise(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """Noise over signal, added up over the outputs that are floats."""
    total = 0.0
    for name, array in expected.items():
        if array.dtype.kind == "f":
            signal = max(float(np.square(array, dtype=np.float64).mean()), TINY)
            total += float(np.square(found[name] - array, dtype=np.float64).mean()) / signal
    return total
