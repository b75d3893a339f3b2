"""Runs a deployed model as the other kind of x86 processor would: the one that saturates, or the one that does not.

This machine is one of the two: a product that leaves 16 bits, run in its runtime, shows which one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions
from onnxqat.graph.naming import name_of
from onnxqat.graph.pairs import Runtime
from onnxqat.metrics.table import Metric
from onnxqat.verification import compare
from onnxqat.verification.emulated import emulated
from onnxqat.verification.fusion import Kernel
from onnxqat.verification.host import Arrays, Host
from onnxqat.verification.rows import in_parts
from onnxqat.verification.saturation import (
    LayerSaturation,
    OtherProcessor,
    Saturation,
    counted,
    integer_layers,
    paired_products,
    unknown_layers,
)

#: Samples computed at once: every pair that can saturate is as large as one channel of its layer's output.
ROWS = 4

_PROBE = """<ir_version: 8, opset_import: ["": 17]>
probe (float[1,8] x) => (float[1,16] y) <float one = {1}, uint8 zero = {0}, int8 none = {0}>
{
  codes = QuantizeLinear(x, one, zero)
  data = DequantizeLinear(codes, one, zero)
  weight = DequantizeLinear(w, one, none)
  y = MatMul(data, weight)
}"""


def saturates_here(host: Host) -> bool:
    """Whether the runtime's integer kernels saturate on this machine, as they do without VNNI."""
    proto = onnx.parser.parse_model(_PROBE)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((8, 16), 127, np.int8), "w"))
    host.load("probe", ir.from_proto(proto))
    (product,) = host.run("probe", {"x": np.full((1, 8), 255, np.float32)}).values()
    return not np.allclose(product, 8 * 255 * 127)


class Elsewhere:
    """Results of the deployed model on processors without VNNI: proved, or emulated batch by batch.

    Args:
        host: the runtime.
        deployed: the deployed model.
        kernels: what became of its nodes there.
        metric: to score it by.
        decisions: what the first output decides.
    """

    def __init__(
        self, host: Host, deployed: ir.Model, kernels: Sequence[Kernel], metric: Metric, decisions: Decisions
    ) -> None:
        self._products: tuple[str, ...] = ()
        self._unknown: tuple[str, ...] = ()
        self._counts: list[LayerSaturation] = []
        self._emulation: _Emulation | None = None
        runtime = host.runtime
        if runtime == "qnn" or host.stands_for:  # no x86 processor
            return
        layers = integer_layers(deployed, kernels, runtime)
        self._products = paired_products(deployed, kernels, runtime)
        self._unknown = tuple(map(name_of, unknown_layers(deployed, kernels, runtime)))
        self._counts = [counted(layer, runtime) for layer in layers.values()]
        numbers = [number for number, count in zip(layers, self._counts, strict=True) if count.on_avx2]
        if numbers:
            self._emulation = _Emulation(host, runtime, deployed, numbers, metric, decisions)

    @property
    def watch(self) -> compare.Watch | None:
        """Returns the function that must see every batch; None if nothing is left to find out."""
        return None if self._emulation is None else self._emulation.add

    def result(self) -> Saturation:
        """Returns the findings after all batches."""
        if self._emulation is None:
            return Saturation(tuple(self._counts), self._products, self._unknown)
        return replace(self._emulation.result(self._counts), products=self._products, unknown=self._unknown)


class _Emulation:
    """The deployed model on the other kind of processor, batch by batch.

    Args:
        runtime: its runtime, which has such kernels.
        numbers: of the nodes to write out, those in which a pair can saturate.
    """

    def __init__(
        self,
        host: Host,
        runtime: Runtime,
        deployed: ir.Model,
        numbers: list[int],
        metric: Metric,
        decisions: Decisions,
    ) -> None:
        self._host, self._deployed, self._metric, self._decisions = host, deployed, metric, decisions
        self._saturates = not saturates_here(host)
        found = emulated(deployed, numbers, runtime, saturating=self._saturates)
        # OpenVINO would make integer layers of what is written out as floats
        host.load("other", found.model, simulate=runtime == "openvino")
        self._statistics: dict[str, NDArray[np.float64]] = {name: np.zeros(3) for name in found.statistics}
        self._with_trained, self._with_deployed = compare.Comparison(), compare.Comparison()

    def add(self, inputs: Arrays, label: NDArray[Any] | None, trained: Arrays, deployed: Arrays) -> None:
        """Runs a batch, given what the Q/DQ model and this machine made of it."""
        other = self._first_output(inputs)
        compare.add_scores(self._with_trained, {"other": {"": other}}, label, self._metric)
        for result, model in ((self._with_trained, trained), (self._with_deployed, deployed)):
            compare.add_agreement(result, next(iter(model.values())), other, self._decisions)

    def _first_output(self, inputs: Arrays) -> NDArray[Any]:
        """The model's first output, computed in parts of a few samples."""
        parts = [self._run(part) for part in in_parts(inputs, self._deployed, ROWS)]
        axis = self._decisions.samples
        if len(parts) > 1 and (axis is None or len({np.delete(part.shape, axis).tobytes() for part in parts}) > 1):
            return self._run(inputs)  # the output is not made of samples, or of a size that depends on the data
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis or 0)

    def _run(self, inputs: Arrays) -> NDArray[Any]:
        outputs = self._host.run("other", inputs)
        for name, sums in self._statistics.items():
            changed, elements, largest = outputs[name]
            sums += [changed, elements, 0]
            sums[2] = max(sums[2], largest)
        return next(iter(outputs.values()))

    def result(self, counts: Sequence[LayerSaturation]) -> Saturation:
        """Returns the findings over all batches."""
        statistics = iter(self._statistics.values())
        layers = tuple(_with(count, next(statistics)) if count.on_avx2 else count for count in counts)
        other = OtherProcessor(
            self._saturates,
            self._with_trained.score("other"),
            self._with_trained.agreement,
            self._with_deployed.agreement,
        )
        return Saturation(layers, other=other)


def _with(count: LayerSaturation, statistics: NDArray[np.float64]) -> LayerSaturation:
    changed, elements, largest = (float(number) for number in statistics)
    return replace(count, changed=changed / max(elements, 1), largest=largest)
