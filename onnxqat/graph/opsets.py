"""Models of operator sets older or newer than what the runtime reads: brought to one that it does, or refused by operator."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

import onnx
import onnx.inliner
import onnx_ir as ir

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.edit import make_inputs
from onnxqat.graph.types import infer
from onnxqat.graph.upgrade import upgrade_nodes

log = logging.getLogger(__name__)

#: Opset that models of older ones than 13 are converted to.
CONVERTED_OPSET = 17
#: Weights larger than this many bytes stay out of what goes through onnx's converter, whose limit is 2 GiB.
SMALL = 1024


def is_foreign(node: ir.Node) -> bool:
    """Whether the operator is none of ONNX's own, in any version of its default domain."""
    return node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type)


def upgraded(model: ir.Model, version: int) -> ir.Model:
    """A copy of the model in a newer opset (see `upgrade`).

    Raises:
        InputError: an operator has no newer form; the message names it.
    """
    found = model.opset_imports[""]
    copy = model.clone()
    infer(copy)
    try:
        upgrade_nodes(copy, found, version)
    except UnsupportedModelError as error:
        raise InputError(f"model: opset {found} cannot be converted to {version}: {error}; export it again") from error
    _check_exist(copy, found, version, "converted", f"opset {version}")
    copy.opset_imports[""] = version
    return copy


def lowered(model: ir.Model, version: int) -> ir.Model:
    """The model expressed in an older opset, where all of its operators exist there in the same form.

    Operators that are newer and that ONNX defines by others (Swish, RMSNormalization, Attention) are written out.

    Raises:
        InputError: an operator has no such form; the message names all of them.
    """
    found = model.opset_imports[""]
    new = {n.op_type for n in model.graph.all_nodes() if not is_foreign(n) and not onnx.defs.has(n.op_type, version)}
    functions = [("", name) for name in new if _has_body(name, found)]
    if functions:
        _state_defaults(model, new, found)
        model = _without_weights(
            model, lambda proto: onnx.inliner.inline_selected_functions(proto, functions, inline_schema_functions=True)
        )
    _check_exist(model, found, version, "lowered", f"opset 17 to {version}")
    model.opset_imports[""] = version
    log.warning("model lowered from opset %d to %d", found, version)
    return model


def _check_exist(model: ir.Model, found: int, version: int, change: str, remedy: str) -> None:
    """Raises InputError if operators of the model do not exist in an opset; the message names all of them."""
    stuck = Counter(n.op_type for n in model.graph.all_nodes() if not is_foreign(n) and not _exists(n, version))
    if stuck:
        raise InputError(
            f"model: opset {found} cannot be {change} to {version}, because of {_listed(stuck)}; export it with {remedy}"
        )


def _listed(operators: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(operators.items()))


def _state_defaults(model: ir.Model, operators: Iterable[str], version: int) -> None:
    """Writes out the attributes that nodes leave at their default: the inliner drops what refers to an absent one."""
    for node in [node for node in model.graph.all_nodes() if node.op_type in operators]:
        for name, attribute in onnx.defs.get_schema(node.op_type, version).attributes.items():
            if name not in node.attributes and attribute.default_value.name:
                node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)


def _exists(node: ir.Node, version: int) -> bool:
    """Whether the operator of that opset has the node's inputs, outputs and attributes."""
    if not onnx.defs.has(node.op_type, version):
        return False
    schema = onnx.defs.get_schema(node.op_type, version)
    fits = len(node.inputs) <= schema.max_input and len(node.outputs) <= schema.max_output
    return fits and all(name in schema.attributes for name in node.attributes)


def _has_body(name: str, version: int) -> bool:
    if not onnx.defs.has(name, version):
        return False
    schema = onnx.defs.get_schema(name, version)
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _without_weights(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """The model after a change of its protobuf form, through which large weights go as inputs without data."""
    graph = model.graph
    large = [v for v in graph.initializers.values() if v.const_value is not None and v.const_value.nbytes > SMALL]
    tensors = {str(value.name): value.const_value for value in large}
    listed = {value.name for value in graph.inputs}
    make_inputs(graph, tensors)
    result = ir.from_proto(change(ir.to_proto(model)))
    _give_back(result.graph, tensors, listed)
    return result


def _give_back(graph: ir.Graph, tensors: dict[str, ir.TensorProtocol | None], listed: set[str | None]) -> None:
    for value in [value for value in graph.inputs if value.name in tensors]:
        value.const_value = tensors[str(value.name)]
        graph.register_initializer(value)
    kept = [value for value in graph.inputs if value.name not in tensors or value.name in listed]
    graph.inputs.clear()
    graph.inputs.extend(kept)
