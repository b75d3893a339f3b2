"""Brings a float model into the form that the patterns know: same answers, fewer ways to write them.

Node names survive every step, since the user's configuration selects by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from onnxqat.data.batch import Batch
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import forget_names, fresh_name
from onnxqat.graph.finite import check_finite_weights
from onnxqat.graph.identities import eliminate_identities
from onnxqat.graph.limits import check_folded
from onnxqat.graph.opsets import lowered, upgraded
from onnxqat.graph.pads import make_pads_explicit
from onnxqat.graph.qdq import is_quantized
from onnxqat.graph.reversal import reverse_at_least_one_step
from onnxqat.graph.types import infer
from onnxqat.insertion.preparation.activations import write_hard_activations
from onnxqat.insertion.preparation.affine import decompose_batch_normalization, fold_affine
from onnxqat.insertion.preparation.bounds import bound_activations
from onnxqat.insertion.preparation.einsum import einsum_as_matmul
from onnxqat.insertion.preparation.fixed import fix_inputs
from onnxqat.insertion.preparation.gemm import make_bias_a_vector, turn_weights
from onnxqat.insertion.preparation.half import float16_to_float32
from onnxqat.insertion.preparation.last_axis import turn_to_last_axis
from onnxqat.insertion.preparation.simplify import (
    drop_inference_noops,
    flatten_as_reshape,
    merge_pads,
    pool_means,
    sum_bias_in_gemm,
)
from onnxqat.insertion.preparation.single import with_single_nodes
from onnxqat.insertion.tied import share_tables
from onnxqat.runtime.conversion import check_converted, modern
from onnxqat.targets import Target

OLDEST_CONVERTIBLE = 7
LARGEST_FILL = 64
NEWEST_WITH_KERNELS = 20
#: Opset and format of files with integers of 4 bits, scales for blocks of them, and quantizers of 16 bits.
FIRST_WITH_ALL_TYPES, FIRST_IR_WITH_ALL_TYPES = 21, 10
#: The same with numbers of E4M3.
FIRST_WITH_FLOAT8, FIRST_IR_WITH_FLOAT8 = 19, 9
#: Ways to write the same that patterns need not know, each brought to one form, in this order.
SIMPLIFICATIONS = (
    bound_activations,
    write_hard_activations,
    share_tables,
    einsum_as_matmul,
    make_bias_a_vector,
    sum_bias_in_gemm,
    fold_affine,
    decompose_batch_normalization,
    pool_means,
    flatten_as_reshape,
)


def prepare(model: io.ModelLike, fixed: Mapping[str, Any] | None = None, target: Target | None = None) -> ir.Model:
    """Loads a float model and normalizes it.

    Args:
        model: the model, or its path.
        fixed: inputs that become constants first (see `fixed`).
        target: runtime that wants some functions as one node, or along the last axis (`Operators.single`, `Limits.last_axis`).

    Raises:
        InputError: the model is not usable (see `graph.io.load`), cannot be converted to opset 17, or is quantized already.
    """
    loaded = _loaded(model, fixed)
    reverse_at_least_one_step(loaded.graph)
    loaded = modern(loaded)
    if is_quantized(loaded):
        raise InputError(
            "model: is quantized already (it has QuantizeLinear or DequantizeLinear nodes); give the float model"
        )
    loaded = _with_kernels(loaded)
    check_finite_weights(loaded)
    passes.RemoveInitializersFromInputsPass()(loaded)
    name_nodes(loaded.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(loaded)
    drop_inference_noops(loaded.graph)
    eliminate_identities(loaded)
    infer(loaded)
    float16_to_float32(loaded)
    # Exporters transpose and cast weights at run time; whatever their size, they are constants.
    _fold_constants(loaded)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(loaded)
    eliminate_identities(loaded)
    loaded = loaded.clone()  # nodes inside branches that were folded away would still count as readers
    infer(loaded)
    forget_names(loaded.graph)
    for simplify in SIMPLIFICATIONS:
        simplify(loaded.graph)
    make_pads_explicit(loaded)
    merge_pads(loaded.graph)
    passes.RemoveUnusedNodesPass()(loaded)
    infer(loaded)
    name_nodes(loaded.graph)
    if target is None:
        return loaded
    turn_to_last_axis(loaded.graph, target.limits.last_axis)
    return with_single_nodes(loaded, target.operators.single)


def ready_for_blocks(model: ir.Model) -> ir.Model:
    """A prepared model in the opset that has scales in blocks, with weights as kernels read them in blocks."""
    turn_weights(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    return with_all_types(model)


def with_all_types(model: ir.Model) -> ir.Model:
    """A prepared model in the opset that has quantizers of 4 and 16 bits."""
    return _at_least(model, FIRST_WITH_ALL_TYPES, FIRST_IR_WITH_ALL_TYPES)


def with_float8(model: ir.Model) -> ir.Model:
    """A prepared model in the opset that has quantizers to E4M3."""
    return _at_least(model, FIRST_WITH_FLOAT8, FIRST_IR_WITH_FLOAT8)


def _at_least(model: ir.Model, opset: int, version: int) -> ir.Model:
    ready = upgraded(model, opset) if io.opset(model) < opset else model
    ready.ir_version = max(ready.ir_version, version)
    return ready


def check_conversion(model: io.ModelLike, fixed: Mapping[str, Any] | None, batch: Batch) -> None:
    """Refuses a float model of an old operator set that `prepare` has changed the answers of, judged by a batch of its own.

    Raises:
        InputError: see `conversion`.
    """
    loaded = _loaded(model, fixed)
    if io.opset(loaded) < io.OLDEST_OPSET:
        check_converted(loaded, batch)


def _loaded(model: io.ModelLike, fixed: Mapping[str, Any] | None) -> ir.Model:
    loaded = io.load(model, oldest_opset=OLDEST_CONVERTIBLE)
    fix_inputs(loaded, fixed or {})
    return loaded


def _with_kernels(model: ir.Model) -> ir.Model:
    """The model in the newest opset for which ONNX Runtime 1.19 has all integer kernels, where its operators are the same there.

    It fuses MatMul of opset 21 and then has no kernel for what it made of it.
    """
    found = {node.op_type for node in model.graph.all_nodes()}
    if io.opset(model) <= NEWEST_WITH_KERNELS or "MatMul" not in found or "GroupNormalization" in found:
        return model  # the scale of GroupNormalization has another shape in opset 21
    try:
        return lowered(model, NEWEST_WITH_KERNELS)
    except InputError:
        return model


def _fold_constants(model: ir.Model) -> None:
    try:
        optimizer.fold_constants(model, input_size_limit=2**31, output_size_limit=2**31, should_fold=_is_small_fill)
    except RuntimeError as error:  # of a node that is broken
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"model: its constants cannot be computed ({error}: {reason[0][:200]}); export it again"
        ) from error


def _is_small_fill(node: ir.Node) -> bool | None:
    """Also folds ConstantOfShape, which the optimizer otherwise keeps, where it makes a shape or pads; PyTorch writes them so.

    Raises:
        InputError: the node's result is too large to carry it out.
    """
    check_folded(node)
    shape = constant(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    return True if shape is not None and np.prod(shape) <= LARGEST_FILL else None


def name_nodes(graph: ir.Graph) -> None:
    """Gives every node a name of its own, so that messages and rules can name it."""
    seen: set[str] = set()
    for node in graph:
        if not node.name or node.name in seen:
            node.name = fresh_name(graph, node.name or node.op_type)
        seen.add(node.name)
