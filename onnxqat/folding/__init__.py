"""Turns a Q/DQ model into the deployed one: weights and biases become integers, what only training needed is removed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.checking import judged
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding.activations import fold_activation, share_zero_points
from onnxqat.folding.biases import fold_bias
from onnxqat.folding.guards import guard_blocks, guard_float_layers
from onnxqat.folding.half import in_float16
from onnxqat.folding.tables import fold_table, is_table
from onnxqat.folding.weights import check_scale, fold_weight, round_weight, separate_readers
from onnxqat.graph import io
from onnxqat.graph.apart import keep_biases
from onnxqat.graph.biases import biases_are_integers, integer_biases
from onnxqat.graph.finite import check_finite_weights
from onnxqat.graph.qdq import Quantizer, quantizers, write_scalars
from onnxqat.graph.sizes import fix_sizes
from onnxqat.graph.types import infer
from onnxqat.graph.without import DEPLOYED, TARGET
from onnxqat.names import WeightForm
from onnxqat.runtime import checked, explained
from onnxqat.targets import TARGETS, Target

log = logging.getLogger(__name__)


def fold(model: io.ModelLike, *, weights: WeightForm = "int8", float16: bool = False) -> onnx.ModelProto:
    """Folds a Q/DQ model into the deployed model.

    Weights become int8 or uint8 initializers, of 4 bits or fewer packed into bytes, those in blocks int4 or uint4; biases int32
    of scale sx·sw, and a Relu or Clip in front of a quantizer bounds on its codes (both left in float where the target of
    `insert` takes them so).
    Activations keep their QuantizeLinear/DequantizeLinear pairs, which runtimes fuse.

    Args:
        model: path of a Q/DQ model, or the model itself; it is not changed.
        weights: "int8": weights are stored as integers; "float": as the float numbers that these stand for, with a pair behind
            them, as TensorRT 8 reads them. Those in blocks and tables of embeddings are always integers.
        float16: whether scales, what stays float and all values between are float16, for TensorRT 10 and 11, which take types as
            they are written. Inputs and outputs stay as they are. Answers change by what float16 rounds.

    Returns:
        The deployed model. Dequantized weights are bit for bit those of the Q/DQ model; a bias moves by half a step of its
        scale at most.

    Example:
        ```python
        deployed = onnxqat.fold("model.qdq.onnx")
        onnxqat.save(deployed, "model.int8.onnx")
        ```

    Raises:
        InputError: the model has no quantizers, a weight, bias or scale is not finite, a bias does not fit int32.
    """
    with explained(model):
        folded = _folded(io.load(model), weights)
        if float16:
            folded = in_float16(folded)
        _check_own(folded)
    proto = io.to_proto(folded)
    # runtimes infer these again; in a small net they would be a twentieth of the file
    del proto.graph.value_info[:]
    return checked(proto)


def _folded(folded: ir.Model, form: WeightForm) -> ir.Model:
    """The deployed form of a Q/DQ model, which is changed in place."""
    fix_sizes(folded)
    found = quantizers(folded)
    if not found:
        raise InputError("model: has no quantizers; run `onnxqat insert` first")
    graph = folded.graph
    for quantizer in found:
        check_scale(quantizer)
    write_scalars(found)
    weights = [q for q in found if q.is_weight and q.quantize is not None]
    if biases_are_integers(folded):
        _fold_as_kernels_add(folded, found)
    _fold_weights(folded, weights, form)
    if (target := _target(folded)) is not None:
        keep_biases(graph, target.biases.lost_by)
    check_finite_weights(folded)
    share_zero_points(found)
    passes.RemoveUnusedNodesPass()(folded)
    _state_shapes(folded)
    graph.sort()
    folded.metadata_props[DEPLOYED] = "fold"
    log.info("folded %d weight%s", len(weights), "" if len(weights) == 1 else "s")
    return folded


def _fold_weights(model: ir.Model, weights: Iterable[Quantizer], form: WeightForm) -> None:
    target = _target(model)
    for quantizer in weights:
        if is_table(quantizer):
            fold_table(model.graph, quantizer, io.opset(model))
        elif form == "float" and not quantizer.block:
            round_weight(model.graph, quantizer)
        else:
            fold_weight(model.graph, quantizer, packs=target is None or target.weights.packs_codes)
    passes.RemoveUnusedNodesPass()(model)
    for quantizer in quantizers(model):
        if quantizer.is_weight:
            separate_readers(model.graph, quantizer)


def _fold_as_kernels_add(model: ir.Model, found: Sequence[Quantizer]) -> None:
    """Makes biases integers, and activations bounds of the codes; float layers are kept from becoming integer ones."""
    target, again = _target(model), DEPLOYED in model.metadata_props
    clips_codes = target is None or target.limits.clips_codes
    for bias in integer_biases(model):
        fold_bias(model.graph, bias)
    for quantizer in found:
        if not quantizer.is_weight:
            fold_activation(model.graph, quantizer, clips_codes=clips_codes, again=again)
    if target is None or not target.placement.whole:
        guard_float_layers(model.graph)
        guard_blocks(model.graph, found)


def _target(model: ir.Model) -> Target | None:
    return TARGETS.get(model.metadata_props.get(TARGET, ""))


def _check_own(folded: ir.Model) -> None:
    """Judges the deployed model by its target, where it names one."""
    target = _target(folded)
    found = None if target is None else judged(folded.clone(), target)
    for finding in found.refused if found is not None else ():
        raise UnsupportedModelError(f"deployed model for {folded.metadata_props[TARGET]}: {finding}")
    for finding in found.of("split") if found is not None else ():
        log.warning("warning: %s", finding)


def _state_shapes(model: ir.Model) -> None:
    """Infers the shapes of outputs that say none, as ONNX's checker demands."""
    if any(value.shape is None for value in model.graph.outputs):
        infer(model)
