"""Gradients of any ONNX model at a point, without training anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.autodiff.lowering import lower
from onnxqat.autodiff.names import SUFFIX
from onnxqat.errors import InputError
from onnxqat.graph.edit import fresh_value_name
from onnxqat.graph.empty import check_not_empty, fatal_when_empty
from onnxqat.graph.io import ModelLike, load
from onnxqat.graph.ops import FLOAT_TYPES
from onnxqat.graph.qdq import is_quantized
from onnxqat.names import EngineName
from onnxqat.runtime import exactly
from onnxqat.runtime.conversion import modern
from onnxqat.runtime.engines import kernels
from onnxqat.training.quantizers.calls import call_quantizers
from onnxqat.training.quantizers.restore_float import restore_float
from onnxqat.training.training_graph.losses import LOSS

Array = npt.NDArray[np.generic]
COTANGENT = "/cotangent"


def gradients(
    model: ModelLike,
    feeds: Mapping[str, Array],
    wrt: Sequence[str],
    cotangents: Mapping[str, Array] | None = None,
    *,
    engine: EngineName = "auto",
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Computes a model's outputs and the gradients of Σ output·cotangent over its float outputs.

    Those of quantizers are the ones that training uses (see `fakequant`): straight through for the data, learned step
    size for the scale. Weights that a Q/DQ model stores as integers are named without `_quantized`, as in training.

    Args:
        model: path or model, float or Q/DQ.
        feeds: an array for each input.
        wrt: names of float inputs or initializers.
        cotangents: output name to an array of that output's shape; once given, outputs left out do not count.
            None: ones for every float output.
        engine: whose kernels are used; see `Trainer`.

    Returns:
        Outputs by name, and gradients by name: each of the shape and type of the value it belongs to.

    Example:
        ```python
        outputs, gradients = onnxqat.gradients("model.onnx", {"x": image}, wrt=["x", "conv.weight"])
        print(gradients["x"].shape)
        ```

    Raises:
        UnsupportedModelError: nodes on the path have no gradient; all are named.
        InputError: a name is not in the model, the engine is not installed, or an input is empty where ONNX Runtime cannot
            take that.
    """
    found = Gradients(model, wrt, cotangents, engine=engine)
    check_not_empty(found.fatal_when_empty, feeds)
    return found(feeds, cotangents)


class Gradients:
    """The graph of `gradients`, loaded once for many points.

    Args:
        model: path or model, float or Q/DQ.
        wrt: names of float inputs or initializers.
        cotangents: names of the outputs that count; None: all, with ones.
        engine: whose kernels are used.

    Attributes:
        fatal_when_empty: inputs that crash ONNX Runtime if they are empty, each with the operator.
    """

    def __init__(
        self, model: ModelLike, wrt: Sequence[str], cotangents: Collection[str] | None, *, engine: EngineName = "auto"
    ) -> None:
        forward = modern(load(model, oldest_opset=7))
        graph = forward.graph
        self.fatal_when_empty = fatal_when_empty(graph)
        if is_quantized(forward):
            restore_float(forward)
            call_quantizers(forward)
        self._wrt, self._names = list(wrt), [str(output.name) for output in graph.outputs]
        add_weighted_sum(graph, cotangents)
        self._aliases = _without_suffix(graph)
        weights = {name: graph.initializers[name].const_value for name in wrt if name in graph.initializers}
        trained = differentiate(forward, LOSS, wrt)
        lower(trained, kernels(engine))
        self._weights = {name: value.numpy() for name, value in weights.items() if value is not None}
        self._run = exactly(ir.to_proto(trained))

    def __call__(
        self, feeds: Mapping[str, Array], cotangents: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs and gradients by name."""
        given = {f"{name}{COTANGENT}": np.asarray(value) for name, value in (cotangents or {}).items()}
        results = self._run({**self._weights, **given, **feeds})
        outputs = {name: results[self._aliases.get(name, name)] for name in self._names}
        return outputs, {name: results[f"{name}_grad"] for name in self._wrt}


def _without_suffix(graph: ir.Graph) -> dict[str, str]:
    """Gives outputs that are called as gradients will be other names, and returns those by the old ones."""
    aliases = {}
    for output in graph.outputs:
        name = str(output.name)
        if name.endswith(SUFFIX) and not output.is_graph_input() and not output.is_initializer():
            output.name = aliases[name] = fresh_value_name(graph, f"{name}_output")
    return aliases


def add_weighted_sum(graph: ir.Graph, cotangents: Collection[str] | None) -> None:
    """Adds Σ output·cotangent over the named outputs as a float32 scalar `LOSS`; cotangents are graph inputs, if any."""
    outputs = {str(output.name): output for output in graph.outputs if output.dtype in FLOAT_TYPES}
    chosen = list(outputs) if cotangents is None else list(cotangents)
    unknown = [name for name in chosen if name not in outputs]
    if unknown or not chosen:
        raise InputError(f"cotangents {unknown}: not float outputs of the model; it has {sorted(outputs)}")
    terms = []
    for name in chosen:
        value = outputs[name]
        if cotangents is not None:
            weight = ir.Value(name=f"{name}{COTANGENT}", type=value.type, shape=value.shape)
            graph.inputs.append(weight)
            value = _append(graph, "Mul", [value, weight])
        value = _append(graph, "ReduceSum", [value], {"keepdims": 0})
        terms.append(_append(graph, "Cast", [value], {"to": ir.DataType.FLOAT}))
    total = terms[0]
    for term in terms[1:]:
        total = _append(graph, "Add", [total, term])
    total.name, total.type, total.shape = LOSS, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])


def _append(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes or {})
    graph.append(node)
    return node.outputs[0]
