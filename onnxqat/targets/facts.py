"""Facts about a target, which every file of this package gives: a part for each question about its runtime.

What a default says is what most runtimes do, so that a target's file names what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxqat.graph.qdq import Quantizer
from onnxqat.names import RuntimeName

Names = frozenset[str]
NONE: Names = frozenset()


def operators(names: str) -> Names:
    """Operators from their names, with spaces between."""
    return frozenset(names.split())


@dataclass(frozen=True)
class Operators:
    """Operators that compute on integers, become one with those that do, or move data between them.

    Attributes:
        weighted: operators with a weight that become one integer kernel.
        integer: other operators that read integers; used only where all they read is integer already. OpenVINO's elementwise ones
            (Add to Sqrt) compute in float, in one generated kernel with the quantizers around them.
        absorbs: activations that vanish in the requantization of the node before them.
        between: activations without an integer kernel that are worth running in float between two pairs.
        passes: data movement across which the runtime carries a quantizer itself.
        repeats: data movement that runs on integers, if at all, only with a second pair, of the same scale, behind it.
        joins: operators whose inputs share one scale, so that a quantizer passes through them to each input.
        single: functions that exporters write as several nodes and that the runtime takes as one node only.
        decomposed: functions of several nodes whose parts may be quantized one by one; others stay in float as wholes.
    """

    weighted: Names
    integer: Names
    absorbs: Names
    between: Names = NONE
    passes: Names = NONE
    repeats: Names = NONE
    joins: Names = NONE
    single: Names = NONE
    decomposed: Names = NONE

    @property
    def kernels(self) -> Names:
        """Operators that compute, with a weight or without."""
        return self.weighted | self.integer

    @property
    def moves(self) -> Names:
        """Data movement of both kinds."""
        return self.passes | self.repeats

    @property
    def carries(self) -> Names:
        """Across what the runtime moves a quantizer before it looks for integer kernels."""
        return self.passes | {"Identity"}


@dataclass(frozen=True)
class Placement:
    """Sides of a node that get a pair.

    Attributes:
        whole: whether every float value is to be integers: inputs and outputs of the model, constant operands, and what a kernel
            reads whose surroundings are float.
        reads: every operator that has an integer kernel, with the inputs that must be quantized for it (None: all); empty where
            the first two of any operator must.
        writes: operators whose integer kernel must write integers; others may write float.
        accumulates: weighted operators that add a value of the output's shape to their accumulator, in float, before they
            requantize: what only an Add reads of them needs no quantizer, and would lose its rounding in the runtime.
        accumulates_one: whether such an operator adds one value only: of two that come so, the one that was computed in fewer
            steps is quantized. An Add of others is none of its kernels.
        products: whether the operands of a product of two activations are quantized whatever is around it.
        softmax_product: whether the product of attention probabilities and values may be quantized.
    """

    whole: bool = False
    reads: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    writes: Names = NONE
    accumulates: Names = NONE
    accumulates_one: bool = False
    products: bool = False
    softmax_product: bool = True


@dataclass(frozen=True)
class Activations:
    """Signs and zero points of activations.

    Attributes:
        symmetric: whether they have a fixed zero point.
        signed: whether symmetric ones with negative values are int8; uint8 with the zero point in the middle otherwise.
        unsigned: whether those without negative values are uint8; int8 otherwise.
        unsigned_beside: operators that make all of them unsigned, wherever they are in the model.
        signed_for: operators that have kernels for int8 data only, and get it beside these, too.
    """

    symmetric: bool = False
    signed: bool = False
    unsigned: bool = True
    unsigned_beside: Names = NONE
    signed_for: Names = NONE


@dataclass(frozen=True)
class Widths:
    """Numbers of bits of activations.

    Attributes:
        taken: those that it runs.
        simulated: those of them for which it has no kernels: between the quantizers it computes in float.
        only_narrow: operators that it computes on 8 bits only, where others take 16.
        narrow_operands: the operand of an operator that its kernel for 16 bits reads with 8, by index.
    """

    taken: frozenset[int] = frozenset({*range(2, 9), 16})
    simulated: frozenset[int] = frozenset({16})
    only_narrow: Names = NONE
    narrow_operands: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
    """Ranges of activations that are given, not found.

    Attributes:
        fixed: grids that the runtime demands behind an operator, whatever the data: scale and zero point by number of bits.
            Training leaves them as they are.
        least: smallest range of an activation.
    """

    fixed: Mapping[str, Mapping[int, tuple[float, int]]] = field(default_factory=dict)
    least: float = 0.0


@dataclass(frozen=True)
class Weights:
    """Codes and granularity of weights.

    Attributes:
        products: types of codes, of data and weight, that its layers multiply.
        narrow: leave out the lowest code of symmetric weights below 8 bits; at 8 it is always left out, since ARM processors
            without dot product wrap where two products -128 · -128 meet.
        per_tensor: operators whose weights have one scale, unless a rule for single layers asks for more.
        one_scale: operators whose kernels take no weight with more than one scale.
        block_sizes: numbers of weights that may share a scale.
        shorter_blocks: whether the last block may be shorter than the others.
        packs_codes: whether codes of 4 bits and fewer are stored packed, with nodes that unpack them.
        only: whether activations are never quantized: there is no kernel for QuantizeLinear.
    """

    products: frozenset[tuple[str, str]] = frozenset({("uint8", "int8"), ("int8", "int8")})
    narrow: bool = False
    per_tensor: Names = NONE
    one_scale: Names = NONE
    block_sizes: frozenset[int] = frozenset({16, 32, 64, 128})
    shorter_blocks: bool = False
    packs_codes: bool = True
    only: bool = False


@dataclass(frozen=True)
class Biases:
    """Form of biases.

    Attributes:
        integer: whether biases are deployed as int32 of scale sx·sw rather than float.
        reads_int32: whether a model with biases as int32 codes is taken.
        lost_by: layers whose bias it computes wrongly in front of a quantizer where the model computes with its sizes.
    """

    integer: bool = True
    reads_int32: bool = True
    lost_by: Names = NONE


@dataclass(frozen=True)
class Limits:
    """Bounds of what the runtime loads and is fast at: a model is refused by name, or a node stays in float.

    Attributes:
        refusal: why it would not load a model with this node; "" where it does.
        too_small: why a layer stays in float although there is a kernel: sizes for which integers are slower; "" for others.
        last_axis: operators that it computes rightly along the last axis only.
        static: whether all sizes must be fixed in the deployed model.
        symmetric_only: whether a model with a zero point other than 0 is refused, or with activations per channel.
        clips_codes: whether integers may be clipped between QuantizeLinear and DequantizeLinear; a Clip of floats between two
            pairs otherwise.
        contrib: whether it loads operators of ONNX Runtime alone, which its optimizations write (domain com.microsoft).
    """

    refusal: Callable[[ir.Node], str] = lambda node: ""
    too_small: Callable[[ir.Node], str] = lambda node: ""
    last_axis: Names = NONE
    static: bool = False
    symmetric_only: bool = False
    clips_codes: bool = True
    contrib: bool = False


@dataclass(frozen=True)
class X86:
    """Integer kernels on x86 without VNNI, which add two products in 16 bits, so that large ones saturate.

    Attributes:
        adds_pairs: whether its kernels do so, and weights are kept from saturating.
        pairs_products: whether products of two activations are added so, too.
        unknown: whether it is not known what an integer layer computes there, given its node and its weight's rank.
    """

    adds_pairs: bool = True
    pairs_products: bool = False
    unknown: Callable[[ir.Node, int], bool] = lambda node, rank: False


@dataclass(frozen=True)
class Target:
    """Abilities of a runtime with quantized nodes.

    Attributes:
        name: name of the target, as the user writes it.
        runtime: the inference runtime, by the name that `verify` takes.
        package: name of the runtime in package registries.
        title: name of the runtime in sentences.
        operators: what computes on integers.
        placement: which sides of a node get a pair.
        activations: their signs and zero points.
        widths: their numbers of bits.
        ranges: ranges that are given, not found.
        weights: their codes and granularity.
        biases: how they are written.
        limits: what it would not load, or run slower.
        x86: its kernels on processors without VNNI.
        simulated: whether the runtime only shows the answers, quantizers computed in float, and others execute the model.
        float8: the same facts for models whose codes are numbers of E4M3; None: there are no kernels for them.
    """

    name: str
    runtime: RuntimeName
    package: str
    title: str
    operators: Operators
    placement: Placement = Placement()
    activations: Activations = Activations()
    widths: Widths = Widths()
    ranges: Ranges = Ranges()
    weights: Weights = Weights()
    biases: Biases = Biases()
    limits: Limits = Limits()
    x86: X86 = X86()
    simulated: bool = False
    float8: Target | None = None

    def for_codes(self, found: Iterable[Quantizer]) -> Target:
        """The facts that a model with these quantizers is judged by."""
        return self.float8 if self.float8 is not None and any(one.is_float8 for one in found) else self

    @property
    def writes_float(self) -> Names:
        """Operators with a weight whose integer kernel may write float."""
        return self.operators.weighted - self.placement.writes
