"""Predicts x86 processors without VNNI for a deployed model: whether pairs of products can saturate, and the cost.

Such a processor adds the products of two neighbours of a reduction in 16 bits. Where no pair of weights can leave 16 bits,
whatever the data, every processor computes the same integers: that is a proof, and needs no data. Where pairs can, the layers
they are in are computed in plain operators as the other kind of processor would (`emulated.py`), beside this machine's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from rich.table import Table
from rich.text import Text

from onnxqat.graph import qdq
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.naming import name_of
from onnxqat.graph.pairs import PairedLayer, Runtime, paired_layers
from onnxqat.numerics import saturates
from onnxqat.targets import of_runtime
from onnxqat.verification.fusion import Kernel, reported

#: Node names listed in the proof.
NAMES_SHOWN = 4


@dataclass(frozen=True)
class LayerSaturation:
    """One layer on an integer kernel that adds products in pairs.

    Attributes:
        node: its name.
        op_type: its operator.
        pairs: how many pairs of weights its kernel adds.
        can_saturate: how many of them can leave 16 bits.
        on_avx2: how many of those there are on AVX2; the others belong to OpenVINO's kernels for AVX-512 before VNNI.
        changed: share of the layer's outputs that saturation changes on AVX2, of inputs as that processor computes them; None
            where nothing can saturate there.
        largest: largest change, in codes of the output, or in 1/255 of its range where it is float; None likewise.
    """

    node: str
    op_type: str
    pairs: int
    can_saturate: int
    on_avx2: int
    changed: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class OtherProcessor:
    """Results on the other kind of processor, where pairs of products can saturate.

    Attributes:
        saturates: whether it is the one without VNNI; False where this machine is.
        score: the metric there; None without labels.
        agreement: share of predictions that equal the Q/DQ model's; None where there are no scores.
        same_as_here: share of predictions that equal this machine's.
    """

    saturates: bool
    score: float | None
    agreement: float | None
    same_as_here: float | None


@dataclass(frozen=True)
class Saturation:
    """Pairs of weights whose products are added in 16 bits by x86 processors without VNNI.

    Attributes:
        layers: the layers whose kernels add pairs of weights.
        products: names of nodes on integer kernels that multiply two activations in pairs, as OpenVINO does. Whether they
            saturate depends on the data, and is not emulated. Nodes of so few bits that none can saturate are left out.
        unknown: names of the integer layers for which no rule is known for processors without VNNI.
        other: what the other kind of processor computes; None where every processor computes the same integers.
    """

    layers: tuple[LayerSaturation, ...]
    products: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    other: OtherProcessor | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return sum(layer.pairs for layer in self.layers)

    @property
    def can_saturate(self) -> int:
        """Number of pairs that can leave 16 bits."""
        return sum(layer.can_saturate for layer in self.layers)

    @property
    def saturates_here(self) -> bool:
        """Whether products can saturate on this machine: it lacks VNNI, and the model has pairs that can."""
        return self.other is not None and not self.other.saturates

    @property
    def proof(self) -> str:
        """States what holds on every processor, whatever the data, and for which layers it is not known."""
        sentences = [f"x86 without VNNI: {self._finding}."]
        if self.unknown:
            which = f"{_layers(len(self.unknown))} ({_named(self.unknown)})"
            sentences.append(
                f"Not covered: {which}: what a processor without VNNI computes for "
                f"{'it' if len(self.unknown) == 1 else 'them'} is not known."
            )
        return " ".join(sentences)

    @property
    def _finding(self) -> str:
        """Finding about the layers that are covered."""
        same = "so it computes the same integers"
        if self.products:
            same += ", but for products of two activations, which depend on the data and are not covered: "
            same += _named(self.products)
        if not self.pairs:
            other = "other " if self.unknown else ""
            return f"no {other}layer adds products of weights in pairs that could saturate, {same}"
        if not self.can_saturate:
            return f"0 of {self.pairs:,} pairs of weights, in {_layers(len(self.layers))}, can saturate, {same}"
        layers = f"{sum(layer.can_saturate > 0 for layer in self.layers)} of {_layers(len(self.layers))}"
        return (
            f"{self.can_saturate:,} of {self.pairs:,} pairs of weights, in {layers}, can saturate, "
            "so it computes other integers"
        )

    def table(self) -> Table:
        """The layers in which pairs can saturate, and what it changes in each, of inputs as such a processor has them."""
        table = Table("layer", "pairs", "can saturate", "outputs changed", "by up to (codes)")
        for layer in filter(lambda layer: layer.can_saturate, self.layers):
            effect = ("on AVX-512 only", "")
            if layer.changed is not None and layer.largest is not None:
                effect = (f"{layer.changed:.2%}", f"{layer.largest:.3g}")
            name = Text(f"{layer.op_type} {layer.node}")
            table.add_row(name, f"{layer.pairs:,}", f"{layer.can_saturate:,}", *effect)
        return table


def integer_layers(deployed: ir.Model, kernels: Sequence[Kernel], runtime: Runtime) -> dict[int, PairedLayer]:
    """The layers of the main graph that run on integer kernels which add pairs, by the number of their node.

    Args:
        deployed: the deployed model.
        kernels: what became of each node that `fusion.reported` names, in that order.
        runtime: where.
    """
    unknown = set(unknown_layers(deployed, kernels, runtime))
    found = {layer.node: layer for layer in paired_layers(deployed) if layer.node not in unknown}
    return {n: found[node] for n, node in _integer_nodes(deployed, kernels).items() if node in found}


def unknown_layers(deployed: ir.Model, kernels: Sequence[Kernel], runtime: Runtime) -> list[ir.Node]:
    """The integer layers of which it is not known what a processor without VNNI computes (see `integer_layers`)."""
    target, produced_by = of_runtime(runtime), qdq.by_output(qdq.quantizers(deployed))
    found = []
    for node in _integer_nodes(deployed, kernels).values():
        weight = quantizer_above(node.inputs[1], produced_by) if len(node.inputs) > 1 else None
        stored = None if weight is None else constant(weight.source)
        if stored is not None and target.x86.unknown(node, stored.ndim):
            found.append(node)
    return found


def paired_products(deployed: ir.Model, kernels: Sequence[Kernel], runtime: Runtime) -> tuple[str, ...]:
    """Names of integer kernels that add products of two activations in pairs, and whose codes are wide enough to saturate.

    ONNX Runtime multiplies these as unsigned codes on both sides, which is exact. OpenVINO adds neighbours of the reduction,
    raw codes on the left and signed ones on the right. See `integer_layers` for the arguments.
    """
    if not of_runtime(runtime).x86.pairs_products:
        return ()
    produced_by = qdq.by_output(qdq.quantizers(deployed))
    found = []
    for node in _integer_nodes(deployed, kernels).values():
        sides = [quantizer_above(value, produced_by) for value in node.inputs[:2]]
        is_product = node.op_type in ("MatMul", "Gemm") and not any(side and side.is_weight for side in sides)
        if is_product and _can_leave_sixteen_bits(*sides):
            found.append(name_of(node))
    return tuple(found)


def _can_leave_sixteen_bits(left: qdq.Quantizer | None, right: qdq.Quantizer | None) -> bool:
    """Says whether two products of the codes of these quantizers can leave 16 bits; True where one is not known."""
    if left is None or right is None:
        return True
    largest = left.qmax + (128 if left.is_signed else 0)
    codes = np.array([right.qmin, right.qmax]) - (0 if right.is_signed else 128)
    return bool(saturates(codes, codes, largest).any())


def _integer_nodes(deployed: ir.Model, kernels: Sequence[Kernel]) -> dict[int, ir.Node]:
    nodes = list(deployed.graph)
    numbers = (number for number, _ in reported(deployed))
    return {n: nodes[n] for n, kernel in zip(numbers, kernels, strict=True) if kernel.kind == "integer"}


def counted(layer: PairedLayer, runtime: Runtime) -> LayerSaturation:
    """Counts the pairs of a layer and those that can saturate, in any kernel of the runtime."""
    codes = layer.weight.codes
    pairs, found = 0, []
    for pairing in layer.pairings(runtime):
        members = layer.pairs(codes, pairing)
        alone = layer.pairs(np.zeros(layer.shape, bool), pairing, fill=True)[..., 1]
        pairs += int(np.count_nonzero(~alone))
        found.append(int(np.count_nonzero(saturates(members[..., 0], members[..., 1], layer.largest))))
    return LayerSaturation(name_of(layer.node), layer.node.op_type, pairs, sum(found), found[0])


def _named(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(map(repr, names[:NAMES_SHOWN])) + f" and {more} more" * (more > 0)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
