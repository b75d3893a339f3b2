"""Measures layer by layer what quantization and deployment did, in one pass over a few batches.

All layers' values are outputs of one model, in groups of bounded size. Reading a value behind its quantizer leaves the integer
kernels of the deployed model as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.graph import io
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.naming import name_of
from onnxqat.graph.qdq import Quantizer, by_output, quantizers
from onnxqat.graph.without import TARGET, without_quantizers
from onnxqat.insertion.preparation import prepare
from onnxqat.names import RuntimeName
from onnxqat.search.layers import Grid, Layer, Layers
from onnxqat.search.layers.values import Noise, Seen, grouped, judged_value, scales_of, seen_weight
from onnxqat.targets import TARGETS
from onnxqat.terminal.progress import track
from onnxqat.verification import fusion, models
from onnxqat.verification.host import RUNTIME_OF, Arrays, Host, opened
from onnxqat.verification.rows import in_parts, one_row
from onnxqat.verification.run import kernels_of

#: Ending of the names that ONNX Runtime gives nodes without one, behind their operator.
_NUMBERED = re.compile(r"(_token)?_\d+$")
#: Samples at once, and bytes of the values that are read of them at once.
ROWS, BYTES = 8, 2**27


def layers(  # noqa: PLR0913  (the public interface is this flat)
    model: io.ModelLike | None,
    qdq: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    deployed: io.ModelLike | None = None,
    *,
    initial: io.ModelLike | None = None,
    samples: int = 64,
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    sample_axis: int | None = None,
    transform: sources.Transform | None = None,
    threads: int = 2,
) -> Layers:
    """Measures for each layer what quantization and deployment did to it; labels are not needed.

    Args:
        model: the float model that `insert` was given; None: the Q/DQ model without its quantizers.
        qdq: the Q/DQ model, trained or not.
        data: batches (see `onnxqat.data`).
        deployed: what `fold` made of it; None: only the Q/DQ model is measured.
        initial: the Q/DQ model before training, from which scales drifted.
        samples: samples to read.
        runtime: "ort", "openvino" or "qnn"; None: that of the model's target.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        sample_axis: axis of the first input that counts samples; None: it follows from the model, and is usually the first.
        transform: turns an item of the loader into a batch.
        threads: threads of the runtime.

    Example:
        ```python
        layers = onnxqat.layers("model.onnx", "model.qdq.onnx", "test.npz", "model.int8.onnx")
        rich.print(layers)
        ```

    Raises:
        InputError: a model or the data is wrong, or the runtime refuses them.
    """
    quantized = io.load(qdq)
    target = quantized.metadata_props.get(TARGET)
    known = TARGETS.get(target or "")
    reference = without_quantizers(quantized) if model is None else prepare(model, {}, known)
    before = scales_of(quantizers(quantized if initial is None else io.load(initial)))
    wanted = _wanted(quantized, reference)
    checked = sources.batches(data, quantized, transform=transform, sample_axis=sample_axis)
    chosen = runtime or RUNTIME_OF.get(target, "ort")
    with opened(chosen, interpreter, threads) as host:
        parts = list(_parts(checked, quantized, samples))
        found = _Measured(host, reference, quantized, None if deployed is None else io.load(deployed), wanted)
        found.measure(parts)
        kernels, times, others = found.profile(parts[0]) if deployed is not None and parts else ({}, {}, None)
    rows = sum(checked.signature.samples.rows(part, list(part)) for part in parts)
    drifted = before if initial is not None else {}
    return Layers(rows, tuple(_layer(one, found, kernels, times, drifted) for one in wanted), others)


@dataclass(frozen=True)
class _Wanted:
    """A layer, and the value that is measured of it."""

    node: ir.Node
    reads: tuple[str, ...]
    weight: Quantizer | None
    input: Quantizer | None
    value: ir.Value
    output: Quantizer | None
    comparable: bool


def _wanted(quantized: ir.Model, reference: ir.Model) -> list[_Wanted]:
    found = quantizers(quantized)
    outputs, inside = by_output(found), {q.source: q for q in found if q.quantize is not None and not q.is_weight}
    order = list(quantized.graph)
    nodes = [order[number] for number, _ in fusion.reported(quantized)]
    reported, named = set(nodes), {str(v.name) for node in reference.graph for v in node.outputs}
    made = []
    for node in nodes:
        above = [quantizer_above(value, outputs) for value in node.inputs]
        value = judged_value(node, inside, reported)
        made.append(
            _Wanted(
                node,
                tuple(sorted({name_of(other) for other in _read(node, reported)})),
                next((q for q in above[1:] if q is not None and q.is_weight), None),
                next((q for q in above[:1] if q is not None and not q.is_weight), None),
                value,
                inside.get(value),
                str(value.name) in named,
            )
        )
    return made


def _read(node: ir.Node, reported: set[ir.Node]) -> Iterator[ir.Node]:
    """The layers whose values a node reads, past what only moves or bends them."""
    seen: set[ir.Node] = set()
    todo = [value.producer() for value in node.inputs if value is not None]
    while todo:
        above = todo.pop()
        if above is None or above in seen:
            continue
        seen.add(above)
        if above in reported:
            yield above
        else:
            todo += [value.producer() for value in above.inputs if value is not None]


def _parts(batches: Iterable[Arrays], model: ir.Model, samples: int) -> Iterator[Arrays]:
    """Inputs, a few samples at a time, up to so many."""
    names = {str(value.name) for value in model.graph.inputs}
    read = 0
    for batch in batches:
        for part in in_parts({name: array for name, array in batch.items() if name in names}, model, ROWS):
            yield part
            read += ROWS
            if read >= samples:
                return


class _Measured:
    """The values of three models, side by side."""

    def __init__(
        self, host: Host, reference: ir.Model, quantized: ir.Model, deployed: ir.Model | None, wanted: Sequence[_Wanted]
    ) -> None:
        self._host, self._reference, self._quantized, self._deployed = host, reference, quantized, deployed
        found = [q for q in quantizers(quantized) if q.quantize is not None and not q.is_weight]
        self._values = {str(one.value.name) for one in wanted if one.comparable}
        self.seen = {str(q.source.name): Seen(q) for q in found}
        self.noise = {name: Noise() for name in self._values}
        self.deployed_noise = {name: Noise() for name in self._values}

    def measure(self, parts: Sequence[Arrays]) -> None:
        """Reads all values, group by group."""
        if not parts:
            return
        inputs = {str(value.name) for value in self._quantized.graph.inputs}
        names = [name for name in dict.fromkeys([*self.seen, *self._values]) if name not in inputs]
        first = self._run("quantized", self._quantized, names, [one_row(parts[0], 0, self._quantized)], simulate=True)
        sizes = {name: array.nbytes * ROWS for name, array in next(iter(first)).items()}
        for part in parts:
            self._take({}, part, {})
        for group in track(list(grouped(sizes, BYTES)), "layers"):
            self._group(group, parts)

    def _group(self, names: list[str], parts: Sequence[Arrays]) -> None:
        common = [name for name in names if name in self._values]
        behind = self._behind(common)
        expected = self._run("float", self._reference, common, parts, simulate=True)
        actual = self._run("quantized", self._quantized, names, parts, simulate=True)
        deployed: Iterable[Arrays] = ({} for _ in parts)
        if self._deployed is not None and behind:
            deployed = self._run("deployed", self._deployed, list(behind.values()), parts, simulate=False)
        for floats, found, ours in zip(expected, actual, deployed, strict=True):
            self._take(floats, found, {name: ours[there] for name, there in behind.items() if there in ours})

    def _take(self, expected: Arrays, found: Arrays, deployed: Arrays) -> None:
        for name, array in found.items():
            after = self.seen[name].add(array) if name in self.seen else array
            if name in expected:
                self.noise[name].add(expected[name], after)
            if name in deployed:
                self.deployed_noise[name].add(expected[name], deployed[name])

    def _behind(self, names: Iterable[str]) -> dict[str, str]:
        """The part of the deployed model that can be read: the value behind the quantizer, or an output."""
        if self._deployed is None:
            return {}
        probes, outputs = models.probes(self._deployed), {str(v.name) for v in self._deployed.graph.outputs}
        found = {}
        for name in names:
            behind = str(self.seen[name].quantizer.output.name) if name in self.seen else name
            if behind in probes or (name not in self.seen and name in outputs):
                found[name] = behind
        return found

    def _run(
        self, called: str, model: ir.Model, names: Sequence[str], parts: Sequence[Arrays], *, simulate: bool
    ) -> Iterator[Arrays]:
        """The values of these names, part by part."""
        self._host.load(called, models.with_outputs(model, names), simulate=simulate)
        for part in parts:
            found = self._host.run(called, part)
            yield {name: found[name] for name in names}

    def profile(self, part: Arrays) -> tuple[dict[str, fusion.Kernel], dict[str, float], dict[str, float] | None]:
        """Kernels of the deployed model by the names of its nodes, their times, and the times of all else by operator."""
        assert self._deployed is not None
        kernels = {kernel.node: kernel for kernel in kernels_of(self._host, self._deployed)}
        taken = {} if self._host.stands_for else self._host.profile(fusion.marked(self._deployed), part)
        times = {name: taken[k.executed] for name, k in kernels.items() if k.executed in taken}
        used, order = {kernel.executed for kernel in kernels.values()}, list(self._deployed.graph)
        others: dict[str, float] = {}
        for name in taken.keys() - used:
            marks = fusion.marks_of_nodes(name)
            operator = order[marks[0]].op_type if marks else _NUMBERED.sub("", name)
            others[operator] = others.get(operator, 0.0) + taken[name]
        return kernels, times, others if taken else None


def _layer(
    one: _Wanted,
    found: _Measured,
    kernels: Mapping[str, fusion.Kernel],
    times: Mapping[str, float],
    initial: Mapping[str, np.ndarray],
) -> Layer:
    name, value = name_of(one.node), str(one.value.name)
    made = Layer(
        node=name,
        op_type=one.node.op_type,
        reads=one.reads,
        weight=None if one.weight is None else seen_weight(one.weight).grid(initial),
        input=_grid(one.input, found, initial),
        output=_grid(one.output, found, initial),
        value=value,
        snr=found.noise[value].decibels if one.comparable else None,
        snr_deployed=found.deployed_noise[value].decibels if one.comparable else None,
        milliseconds=times.get(name),
    )
    kernel = kernels.get(name)
    if kernel is None:
        return made
    return replace(made, kernel=kernel.kernel, kind=kernel.kind, reason=kernel.reason or kernel.purpose)


def _grid(quantizer: Quantizer | None, found: _Measured, initial: Mapping[str, np.ndarray]) -> Grid | None:
    if quantizer is None:
        return None
    seen = found.seen.get(str(quantizer.source.name))
    return Seen(quantizer).grid(initial) if seen is None else seen.grid(initial)
