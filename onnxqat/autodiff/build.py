"""Extends a model whose path to the loss is differentiable by the computation of its gradients."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff import ort
from onnxqat.errors import UnsupportedModelError, short_reason
from onnxqat.graph.edit import make_inputs

_LARGE = 1024  # elements: the gradient builder does not get larger initializers
_CUT = "/stop"


def with_gradients(
    model: ir.Model,
    loss: str,
    wrt: Sequence[str],
    reached: Collection[str | None],
    cuts: Sequence[tuple[ir.Node, int]],
    requested: Sequence[str],
) -> ir.Model:
    """Returns `model` with outputs `requested` and `<name>_grad` for each name in `wrt`.

    Args:
        model: changed in place; do not use it afterwards.
        loss: name of a float scalar.
        wrt: inputs or initializers; the result has them as inputs.
        reached: names of the values on which the loss depends; the gradient of another is zero.
        cuts: (node, input index) where the gradient must not flow.
        requested: names of the forward outputs to keep.
    """
    graph = model.graph
    seed = _scalar_float(graph, loss)
    _cut(graph, cuts)
    make_inputs(graph, wrt)
    _separate_uses(graph, wrt)
    frozen = {
        name: value.const_value
        for name, value in list(graph.initializers.items())
        if value.const_value is not None and value.const_value.size > _LARGE
    }
    make_inputs(graph, frozen)
    active = [name for name in wrt if name in reached]
    result = _build(model, seed, active) if active else model
    _restore(result.graph, frozen)
    _set_outputs(result.graph, wrt, active, requested)
    passes.RemoveUnusedNodesPass()(result)
    passes.RemoveUnusedOpsetsPass()(result)
    return result


def _build(model: ir.Model, loss: str, wrt: Sequence[str]) -> ir.Model:
    try:
        return ir.from_proto(ort.build_gradient_graph(ir.to_proto(model), loss, wrt))
    except (RuntimeError, ValueError) as error:  # ONNX Runtime's own exceptions derive from these
        raise UnsupportedModelError(
            f"the model cannot be differentiated: ONNX Runtime says: {short_reason(error)}"
        ) from error


def _scalar_float(graph: ir.Graph, loss: str) -> str:
    """Returns the name of a float32 graph output that equals the loss: the builder seeds it with a float32 one."""
    value = next(output for node in graph for output in node.outputs if output.name == loss)
    if value.dtype not in (ir.DataType.FLOAT, None):
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{loss}/float")
        graph.append(cast)
        value = cast.outputs[0]
        value.name, value.type = f"{loss}/float", ir.TensorType(ir.DataType.FLOAT)
    if value not in graph.outputs:
        graph.outputs.append(value)
    return str(value.name)


def _cut(graph: ir.Graph, cuts: Sequence[tuple[ir.Node, int]]) -> None:
    """Feeds the inputs from graph inputs instead: the builder then sees no path. `_restore` joins them again."""
    stand_ins: dict[ir.Value, ir.Value] = {}
    for node, index in cuts:
        value = node.inputs[index]
        if value is None:
            continue
        if value not in stand_ins:
            stand_ins[value] = ir.Value(
                name=f"{value.name}{_CUT}", type=value.type or ir.TensorType(ir.DataType.FLOAT), shape=value.shape
            )
            graph.inputs.append(stand_ins[value])
        node.replace_input_with(index, stand_ins[value])


def _separate_uses(graph: ir.Graph, wrt: Sequence[str]) -> None:
    """Puts Identity nodes where one node uses a parameter twice: the builder would give both shares one name."""
    for value in [value for value in graph.inputs if value.name in wrt]:
        for node in set(value.consumers()):
            for index in [i for i, used in enumerate(node.inputs) if used is value][1:]:
                identity = ir.node("Identity", [value], name=f"{value.name}/use_{index}")
                identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
                graph.insert_before(node, identity)
                node.replace_input_with(index, identity.outputs[0])


def _restore(graph: ir.Graph, frozen: dict[str, ir.TensorProtocol]) -> None:
    """Joins what `_cut` separated, and gives large initializers their data back."""
    values = _values(graph)
    for value in list(graph.inputs):
        name = str(value.name)
        if name in frozen:
            graph.inputs.remove(value)
            value.const_value = frozen[name]
            graph.register_initializer(value)
        elif name.endswith(_CUT):
            graph.inputs.remove(value)
            value.replace_all_uses_with(values[name.removesuffix(_CUT)])
    graph.sort()


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    computed = [value for node in graph for value in node.outputs]
    return {str(value.name): value for value in [*graph.inputs, *graph.initializers.values(), *computed]}


def _set_outputs(graph: ir.Graph, wrt: Sequence[str], active: Sequence[str], requested: Sequence[str]) -> None:
    values = _values(graph)
    outputs = [values[name] for name in requested]
    for name in wrt:
        outputs.append(values[f"{name}_grad"] if name in active else _zeros(graph, values[name]))
    graph.outputs[:] = outputs


def _zeros(graph: ir.Graph, parameter: ir.Value) -> ir.Value:
    """Writes the gradient of a value on which the loss does not depend."""
    zero = ir.tensor([0], dtype=parameter.dtype or ir.DataType.FLOAT)
    shape = ir.node("Shape", [parameter], name=f"{parameter.name}_grad/shape")
    zeros = ir.node("ConstantOfShape", shape.outputs, {"value": zero}, name=f"{parameter.name}_grad/zeros")
    graph.extend([shape, zeros])
    result = zeros.outputs[0]
    result.name, result.shape, result.type = f"{parameter.name}_grad", parameter.shape, parameter.type
    return result
