"""Facts about a target, which every file of this package gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxqat.graph.qdq import Quantizer
from onnxqat.names import RuntimeName


@dataclass(frozen=True)
class Target:
    """Abilities of a runtime with quantized nodes.

    Attributes:
        name: name of the target, as the user writes it.
        runtime: the inference runtime, by the name that `verify` takes.
        package: name of the runtime in package registries.
        title: name of the runtime in sentences.
        weighted: operators with a weight that become one integer kernel.
        integer: other operators that read integers; used only where all they read is integer already. OpenVINO's elementwise ones
            (Add to Sqrt) compute in float, in one generated kernel with the quantizers around them.
        passes: data movement across which the runtime carries a quantizer itself.
        repeats: data movement that runs on integers, if at all, only with a second pair, of the same scale, behind it.
        absorbs: activations that vanish in the requantization of the node before them.
        between: activations without an integer kernel that are worth running in float between two pairs.
        decomposed: functions of several nodes whose parts may be quantized one by one; others stay in float as wholes.
        quantized_outputs: operators whose integer kernel must write integers; others may write float.
        accumulates: weighted operators that add a value of the output's shape to their accumulator, in float, before they
            requantize: what only an Add reads of them needs no quantizer, and would lose its rounding in the runtime.
        joins: operators whose inputs share one scale, so that a quantizer passes through them to each input.
        symmetric_activations: whether activations have a fixed zero point.
        signed_activations: whether symmetric activations with negative values are int8; uint8 with the zero point in the middle
            otherwise.
        unsigned_beside: operators that make them so, too, wherever they are in the model.
        loses_biases: layers whose bias it computes wrongly in front of a quantizer where the model computes with its sizes.
        reads_signed: operators that have kernels for int8 data only, and get it beside these, too.
        shorter_blocks: whether the last block of a weight in blocks may be shorter than the others.
        narrow_weights: leave out the lowest code of symmetric weights below 8 bits; at 8 it is always left out, since ARM
            processors without dot product wrap where two products -128 · -128 meet.
        softmax_product: whether the product of attention probabilities and values may be quantized.
        integer_bias: whether biases are deployed as int32 of scale sx·sw rather than float.
        reads: every operator that has an integer kernel, with the inputs that must be quantized for it (None: all); empty where
            the first two of any operator must.
        pairs_products: whether products of two activations, too, are added in pairs on x86 without VNNI.
        unknown_without_vnni: whether it is not known what an integer layer computes there, given its node and its weight's rank.
        adds_pairs: whether its kernels on x86 without VNNI add products in pairs, so that weights are kept from saturating.
        whole: whether every float value is to be integers: inputs and outputs of the model, constant operands, and what a kernel
            reads whose surroundings are float.
        single: functions that exporters write as several nodes and that the runtime takes as one node only.
        last_axis: operators that it computes rightly along the last axis only.
        fixed: grids that the runtime demands behind an operator, whatever the data: scale and zero point by number of bits.
            Training leaves them as they are.
        activation_bits: widths of activations that it runs.
        simulates: those of them for which it has no kernels: between the quantizers it computes in float.
        only_narrow: operators that it computes on 8 bits only, where others take 16.
        narrow_operands: the operand of an operator that its kernel for 16 bits reads with 8, by index.
        least_range: smallest range of an activation.
        static: whether all sizes must be fixed in the deployed model.
        clips_codes: whether integers may be clipped between QuantizeLinear and DequantizeLinear; a Clip of floats between two
            pairs otherwise.
        refusal: why the runtime would not load a model with this node; "" where it does.
        accumulates_one: whether such an operator adds one value only: of two that come so, the one that was computed in fewer
            steps is quantized. An Add of others is none of its kernels.
        unsigned_activations: whether activations without negative values are uint8; int8 otherwise.
        symmetric_only: whether a model with a zero point other than 0 is refused, or with activations per channel.
        per_tensor: operators whose weights have one scale, unless a rule for single layers asks for more.
        too_small: why a layer stays in float although there is a kernel: sizes for which integers are slower; "" for others.
        quantizes_products: whether the operands of a product of two activations are quantized whatever is around it.
        block_sizes: numbers of weights that may share a scale.
        packs_codes: whether codes of 4 bits and fewer are stored packed, with nodes that unpack them.
        products: types of codes, of data and weight, that its layers multiply.
        one_scale: operators whose kernels take no weight with more than one scale.
        int32_biases: whether a model with biases as int32 codes is taken.
        contrib: whether it loads operators of ONNX Runtime alone, which its optimizations write (domain com.microsoft).
        float8: the same facts for models whose codes are numbers of E4M3; None: there are no kernels for them.
        weight_only: whether activations are never quantized: there is no kernel for QuantizeLinear.
        simulated: whether the runtime only shows the answers, quantizers computed in float, and others execute the model.
    """

    name: str
    runtime: RuntimeName
    package: str
    title: str
    weighted: frozenset[str]
    integer: frozenset[str]
    passes: frozenset[str]
    repeats: frozenset[str]
    absorbs: frozenset[str]
    between: frozenset[str]
    decomposed: frozenset[str]
    quantized_outputs: frozenset[str]
    accumulates: frozenset[str]
    joins: frozenset[str]
    symmetric_activations: bool
    signed_activations: bool
    shorter_blocks: bool
    narrow_weights: bool
    softmax_product: bool
    integer_bias: bool
    reads: Mapping[str, tuple[int, ...] | None]
    pairs_products: bool
    unknown_without_vnni: Callable[[ir.Node, int], bool]
    adds_pairs: bool = True
    whole: bool = False
    single: frozenset[str] = frozenset()
    last_axis: frozenset[str] = frozenset()
    fixed: Mapping[str, Mapping[int, tuple[float, int]]] = field(default_factory=dict)
    activation_bits: frozenset[int] = frozenset({*range(2, 9), 16})
    simulates: frozenset[int] = frozenset({16})
    only_narrow: frozenset[str] = frozenset()
    narrow_operands: Mapping[str, int] = field(default_factory=dict)
    least_range: float = 0.0
    static: bool = False
    clips_codes: bool = True
    refusal: Callable[[ir.Node], str] = lambda node: ""
    accumulates_one: bool = False
    unsigned_beside: frozenset[str] = frozenset()
    reads_signed: frozenset[str] = frozenset()
    loses_biases: frozenset[str] = frozenset()
    unsigned_activations: bool = True
    symmetric_only: bool = False
    per_tensor: frozenset[str] = frozenset()
    too_small: Callable[[ir.Node], str] = lambda node: ""
    quantizes_products: bool = False
    block_sizes: frozenset[int] = frozenset({16, 32, 64, 128})
    packs_codes: bool = True
    products: frozenset[tuple[str, str]] = frozenset({("uint8", "int8"), ("int8", "int8")})
    one_scale: frozenset[str] = frozenset()
    int32_biases: bool = True
    weight_only: bool = False
    simulated: bool = False
    contrib: bool = False
    float8: Target | None = None

    def for_codes(self, found: Iterable[Quantizer]) -> Target:
        """The facts that a model with these quantizers is judged by."""
        return self.float8 if self.float8 is not None and any(one.is_float8 for one in found) else self

    @property
    def moves(self) -> frozenset[str]:
        """Data movement of both kinds."""
        return self.passes | self.repeats

    @property
    def carries(self) -> frozenset[str]:
        """Across what the runtime moves a quantizer before it looks for integer kernels."""
        return self.passes | {"Identity"}

    @property
    def writes_float(self) -> frozenset[str]:
        """Operators with a weight whose integer kernel may write float."""
        return self.weighted - self.quantized_outputs


def operators(names: str) -> frozenset[str]:
    """Operators from their names, with spaces between."""
    return frozenset(names.split())
