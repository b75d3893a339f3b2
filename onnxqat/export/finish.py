"""Last step of both exporters: tidies the graph, compares it with the framework and saves it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.errors import InputError, UnsupportedModelError, short_reason
from onnxqat.graph import files, io
from onnxqat.graph.identities import eliminate_identities
from onnxqat.runtime import Inference, checked

Arrays = Mapping[str, NDArray[Any]]

#: Largest difference from the framework's outputs, in units of the largest output or of 1, whichever is more.
TOLERANCE = 1e-4


def check_request(path: str | Path | None, opset: int, newest: int) -> None:
    """Raises InputError for an opset that the exporter cannot write, and for a path that cannot be written."""
    if not io.OLDEST_OPSET <= opset <= newest:
        raise InputError(
            f"opset {opset}: this exporter writes {io.OLDEST_OPSET} to {newest}; ask for one of these, 17 by default"
        )
    if path is not None:
        files.check(path, io.MODEL)


def tidy(proto: onnx.ModelProto, known_as: Callable[[str], str] = str) -> ir.Model:
    """Returns the exporter's graph with its parameters as plain initializers, each under its own name, and nothing unused.

    Args:
        proto: what the exporter wrote.
        known_as: from a node's name to the one that the user knows, for messages.

    Raises:
        UnsupportedModelError: it holds operators that are not ONNX's.
    """
    _check_known(proto.graph.node, known_as)
    model = io.load(proto)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _fold_parameters(model.graph)
    eliminate_identities(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model


def compare(model: ir.Model, feeds: Arrays, expected: Arrays, source: str) -> None:
    """Compares ONNX Runtime's outputs with the framework's.

    Args:
        model: the exported model.
        feeds: inputs by name.
        expected: the framework's outputs by name, for these inputs.
        source: what was exported, for messages.

    Raises:
        UnsupportedModelError: the graph cannot run on these inputs, or an output is off by more than `TOLERANCE`.
    """
    batch = len(next(iter(feeds.values())))
    try:
        found = Inference(model)(feeds)
    except InputError as error:
        raise UnsupportedModelError(
            f"{source}: the exported graph does not run at batch size {batch} ({short_reason(error)}); "
            "take the batch size from the input's shape wherever the code fixes it"
        ) from error
    if list(found) != list(expected):
        raise UnsupportedModelError(
            f"{source}: the exported graph has the outputs {', '.join(found)} where the model gives {', '.join(expected)}; "
            "give each output a layer of its own"
        )
    for name, want in expected.items():
        got = found[name]
        if got.shape != want.shape:
            raise UnsupportedModelError(
                f"{source}: output {name!r} of the exported graph has shape {list(got.shape)} at batch size {batch}, "
                f"not {list(want.shape)}; take the batch size from the input's shape wherever the code fixes it"
            )
        limit = TOLERANCE * max(1.0, float(np.abs(want).max(initial=0)))
        error_size = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0))
        if not error_size <= limit:
            raise UnsupportedModelError(
                f"{source}: output {name!r} of the exported graph is off by {error_size:.2g} at batch size {batch} "
                f"(allowed {limit:.2g}); remove randomness, and code that depends on values, from the forward pass"
            )


def finish(model: ir.Model, path: str | Path | None) -> onnx.ModelProto:
    """Checks the model's form, and saves it to `path` if that is given."""
    proto = checked(io.to_proto(model))
    if path is not None:
        io.save(proto, path)
    return proto


def _check_known(nodes: Iterable[onnx.NodeProto], known_as: Callable[[str], str]) -> None:
    # tf2onnx leaves an operator that it cannot convert in the graph under TensorFlow's name.
    unknown = {f"{node.op_type} of '{known_as(node.name)}'" for node in nodes if not onnx.defs.has(node.op_type)}
    if unknown:
        raise UnsupportedModelError(
            f"model: has operators without an ONNX form, {', '.join(sorted(unknown))}; replace the layers that make them"
        )


def _fold_parameters(graph: ir.Graph) -> None:
    """Replaces Identity, Cast and Transpose of an initializer by an initializer.

    Exporters store equal parameters once and hand them out through Identity nodes named as the parameters; each gets its
    own copy back here, since what is equal in the float model is trained apart.
    """
    folded: dict[tuple[str, str, str], ir.Value] = {}
    for node in list(graph):
        source = node.inputs[0] if len(node.inputs) == 1 else None
        result = node.outputs[0]
        if source is None or source.const_value is None or result.is_graph_output() or node.op_type not in _FOLD:
            continue
        key = (node.op_type, str(source.name), str(node.attributes))
        if node.op_type == "Identity" or key not in folded:
            array = _FOLD[node.op_type](node, source.const_value.numpy())
            folded[key] = _initializer(graph, str(result.name), array)
        ir.convenience.replace_all_uses_with(result, folded[key])
        graph.remove(node, safe=True)
        if node.op_type != "Identity" and not source.uses():
            # Nothing else reads the parameter as it was, so its name is free for what it became.
            del graph.initializers[str(source.name)]
            folded[key].name = source.name


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def _transpose(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    order = node.attributes.get_ints("perm", None)
    return np.transpose(array, order)


def _cast(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(ir.DataType(node.attributes.get_int("to")).numpy())


_FOLD: dict[str, Callable[[ir.Node, NDArray[Any]], NDArray[Any]]] = {
    "Identity": lambda _, array: array,
    "Cast": _cast,
    "Transpose": _transpose,
}
