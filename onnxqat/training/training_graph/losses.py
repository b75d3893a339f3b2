"""Losses as ONNX nodes at the end of the training graph, and what labels they need.

The named losses look at the model's first output, `distill` at all float ones. Labels are called `label`; those of a user's own
function have the names of its formal inputs.

- `cross_entropy`: mean over the labels that count; int64 class numbers in the output's shape without its class axis (see
  `onnxqat.labels`). Where the output comes from Softmax or LogSoftmax, also through movement and its own quantizer, their input
  is taken as the logits.
- `mse`, `l1`: mean over all elements; float32 labels of the output's shape.
- `bce_with_logits`: mean over all elements; float32 labels in [0, 1] of the output's shape. Where the output comes from Sigmoid,
  its input is taken as the logits.
- `distill`: against a teacher's outputs, no labels: KL divergence (mean over the batch) where an output is made of logits or
  probabilities, mean squared error otherwise (Hinton et al. 2015, temperature 1). What both models mask by infinity counts 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.data.labels import Decisions, Labelling
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.foreign import guarded
from onnxqat.graph.ending import ending, varies_in_size
from onnxqat.graph.io import opset
from onnxqat.graph.ops import Ops
from onnxqat.training.training_graph.logits import CLASS_AXIS, by_class, logits_of, moved

log = logging.getLogger(__name__)

#: A loss's name, several names to sum, weights by name, or an ONNX function from (outputs, labels) to a scalar.
Loss: TypeAlias = "str | Sequence[str] | Mapping[str, float] | onnx.FunctionProto | Any"

#: Names in the training graph that no model of a user's has.
LOSS = "onnxqat.loss"
TEACHER = "onnxqat.teacher/"
LABEL = "onnxqat.label/"
#: Where a logarithm of a probability is cut off, so that nothing is taken from infinity.
_LEAST_LOG = -1e4


@dataclass(frozen=True)
class AttachedLoss:
    """What a model's loss needs.

    Attributes:
        labels: numpy dtype of each label, by name.
        distilled: the outputs that are compared to a teacher's.
        judged: what labels of the first output are: "classes", "sides" of a threshold, "values", or None where there are none,
            or a function of the user's takes them.
        decisions: how labels belong to the first output.
    """

    labels: dict[str, np.dtype[Any]]
    distilled: tuple[str, ...]
    judged: Literal["classes", "sides", "values"] | None
    decisions: Decisions


@dataclass(frozen=True)
class Site:
    """Where a named loss is attached.

    Attributes:
        graph: the forward graph.
        output: the output that it looks at.
        decisions: what that decides.
        samples: its axis that counts samples.
    """

    graph: ir.Graph
    output: ir.Value
    decisions: Decisions
    samples: int


Term: TypeAlias = Callable[[Ops, Site], ir.Value]


def attach_loss(model: ir.Model, loss: Loss, labelling: Labelling | None = None) -> AttachedLoss:
    """Adds the loss to a forward model, in place: the value `LOSS`, and graph inputs for labels and teacher outputs.

    Raises:
        InputError: an unknown loss, or two that need labels of different types.
    """
    op = Ops(opset(model))
    before = {value.name for value in model.graph.inputs}
    labelling = labelling or Labelling()
    samples = Samples.of(model, labelling.sample_axis)
    sites = [_site(model.graph, output, labelling, samples) for output in model.graph.outputs]
    judged: Literal["classes", "sides", "values"] | None = None
    if isinstance(loss, str | Sequence | Mapping):
        weights = _weights(loss)
        judged = next((kind for name, kind in _JUDGED.items() if name in weights), None)
        if labelling.ignore_label is not None and judged == "values":
            raise InputError(
                "ignore_label: given, but the labels of the loss are values, all of which count; leave it out"
            )
        total = _sum(op, [_weighted(op, _term(op, sites, name), weight) for name, weight in weights.items()])
    else:
        total = _call(op, model, loss)
    scalar = op.Reshape(total, op.Constant(value=ir.tensor(np.zeros(0, np.int64))))
    scalar.name, scalar.type, scalar.shape = LOSS, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    for number, node in enumerate(op.nodes):
        node.name = f"{LOSS}/{node.op_type}_{number}"
    model.graph.extend(op.nodes)
    added = {str(value.name): value for value in model.graph.inputs if value.name not in {*before, CLASS_AXIS}}
    distilled = tuple(name.removeprefix(TEACHER) for name in added if name.startswith(TEACHER))
    labels = {
        name.removeprefix(LABEL): np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
        for name, value in added.items()
        if name.startswith(LABEL)
    }
    _check_apart(labels, before)
    return AttachedLoss(labels, distilled, judged, sites[0].decisions)


def _check_apart(labels: Iterable[str], inputs: Container[str | None]) -> None:
    for name in labels:
        if name in inputs:
            raise InputError(f"loss: its labels are called {name!r}, as an input of the model is; rename the input")


def _site(graph: ir.Graph, output: ir.Value, labelling: Labelling, samples: Samples) -> Site:
    axis = samples.outputs.get(str(output.name), 0) or 0
    said = labelling if output is graph.outputs[0] else Labelling()
    return Site(graph, output, Decisions.of(output, said, axis), axis)


def _weights(loss: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    weights = dict(loss) if isinstance(loss, Mapping) else dict.fromkeys([loss] if isinstance(loss, str) else loss, 1.0)
    if not weights:
        raise InputError("loss: none given; name one of " + _known())
    for name, weight in weights.items():
        if name not in _TERMS:
            raise InputError(f"loss {name!r}: not known; use one of {_known()}, or an ONNX function")
        if not isinstance(weight, int | float) or not np.isfinite(weight) or weight <= 0:
            raise InputError(f"loss {name!r}: its weight {weight!r} is not a positive number; give one")
    return {name: float(weight) for name, weight in weights.items()}


def _known() -> str:
    return ", ".join(_TERMS)


def _term(op: Ops, sites: Sequence[Site], name: str) -> ir.Value:
    if name == "distill":
        floats = [site for site in sites if site.output.dtype in (None, ir.DataType.FLOAT)]
        varying = [site for site in floats if varies_in_size(site.output, site.graph.inputs)]
        for site in varying:
            log.warning("loss 'distill': leaves out output %r, whose size depends on the data", site.output.name)
        fixed = [site for site in floats if site not in varying]
        if not fixed:
            raise InputError(
                f"loss 'distill': the model has no float output of fixed size to compare; {_remedy(sites)}"
            )
        return _sum(op, [_distill(op, site) for site in fixed])
    return _TERMS[name](op, sites[0])


def _remedy(sites: Sequence[Site]) -> str:
    for site in sites:
        producer = site.output.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            return f"take QuantizeLinear {producer.name!r} off its end, so that it gives floats"
    return "choose another loss"


def _sum(op: Ops, terms: Sequence[ir.Value]) -> ir.Value:
    total = terms[0]
    for term in terms[1:]:
        total = op.Add(total, term)
    return total


def _weighted(op: Ops, term: ir.Value, weight: float) -> ir.Value:
    return term if weight == 1.0 else op.Mul(term, _float(op, weight))


def _cross_entropy(op: Ops, site: Site) -> ir.Value:
    logits = logits_of(op, site.output, "cross_entropy", ("Softmax", "LogSoftmax"))
    label = _extra_input(site.graph, f"{LABEL}label", ir.DataType.INT64)
    logits, label = by_class(op, site.graph, logits, label, site.decisions.axis)
    ignored = site.decisions.ignored
    attributes: dict[str, Any] = {} if ignored is None else {"ignore_index": ignored}
    # The second output must be there, or ONNX Runtime does not differentiate the operator.
    return op.many("SoftmaxCrossEntropyLoss", logits, label, _outputs=2, reduction="mean", **attributes)[0]


def _mse(op: Ops, site: Site) -> ir.Value:
    difference = op.Sub(site.output, _elements(op, site))
    return _mean(op, op.Mul(difference, difference))


def _l1(op: Ops, site: Site) -> ir.Value:
    return _mean(op, op.Abs(op.Sub(site.output, _elements(op, site))))


def _bce_with_logits(op: Ops, site: Site) -> ir.Value:
    """max(z, 0) - z·t + log(1 + exp(-|z|)): the form that does not overflow."""
    logits = logits_of(op, site.output, "bce_with_logits", ("Sigmoid",))
    label = _elements(op, site)
    tail = op.Log(op.Add(op.Exp(op.Neg(op.Abs(logits))), _float(op, 1.0)))
    each = op.Add(op.Sub(op.Relu(logits), op.Mul(logits, label)), tail)
    if site.decisions.ignored is None:
        return _mean(op, each)
    counted = op.Cast(op.Not(op.Equal(label, _float(op, site.decisions.ignored))), to=ir.DataType.FLOAT)
    total = op.ReduceSum(op.Mul(each, counted), keepdims=0)
    return op.Div(total, op.ReduceSum(counted, keepdims=0))


def _elements(op: Ops, site: Site) -> ir.Value:
    """Labels of the output's elements, in its shape: nothing may be broadcast."""
    return op.Reshape(_extra_input(site.graph, f"{LABEL}label", ir.DataType.FLOAT), op.Shape(site.output))


def _distill(op: Ops, site: Site) -> ir.Value:
    output = site.output
    teacher = _extra_input(site.graph, f"{TEACHER}{output.name}", ir.DataType.FLOAT, output.shape)
    found = ending(output)
    if found is not None and found.activation.op_type in ("Softmax", "LogSoftmax"):
        axis = found.activation.attributes.get_int("axis", -1)
        student = moved(op, found.movement, op.LogSoftmax(found.logits, axis=axis))
        if found.activation.op_type == "LogSoftmax":
            return _divergence(op, site, op.Exp(teacher), teacher, student)
        tiny = _float(op, float(np.finfo(np.float32).tiny))
        return _divergence(op, site, teacher, op.Log(op.Max(teacher, tiny)), student)
    if _holds_logits(output):
        student, log_teacher = op.LogSoftmax(output, axis=-1), op.LogSoftmax(teacher, axis=-1)
        return _divergence(op, site, op.Softmax(teacher, axis=-1), log_teacher, student)
    difference = op.Where(op.Equal(output, teacher), _float(op, 0.0), op.Sub(output, teacher))
    return _mean(op, op.Mul(difference, difference))


def _divergence(op: Ops, site: Site, teacher: ir.Value, log_teacher: ir.Value, log_student: ir.Value) -> ir.Value:
    """Σ p·(log p - log q) over classes, mean over everything else of the batch's samples."""
    least = _float(op, _LEAST_LOG)
    apart = op.Sub(op.Max(log_teacher, least), op.Max(log_student, least))
    total = op.ReduceSum(op.Mul(teacher, apart), keepdims=0)
    rows = op.Slice(op.Shape(teacher), op.ints([site.samples]), op.ints([site.samples + 1]))
    return op.Div(total, op.Reshape(op.Cast(rows, to=ir.DataType.FLOAT), op.ints([])))


def _holds_logits(output: ir.Value) -> bool:
    """Whether a rank-2 output comes from a fully connected layer, through quantizers and a bias alone."""
    value: ir.Value | None = output
    if output.shape is None or output.shape.rank() != 2 or output.shape[1] == 1:
        return False
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("Gemm", "MatMul"):
            return True
        if node.domain == "" and node.op_type not in ("Add", "Identity", "Flatten", "Reshape", "Squeeze"):
            return node.op_type == "Conv"
        value = node.inputs[0]
    return False


def _call(op: Ops, model: ir.Model, loss: Any) -> ir.Value:
    """A call of the user's function: its first inputs are the model's outputs in order, the others are labels."""
    with guarded("loss: cannot be made an ONNX function", "mend the function"):
        proto = loss if isinstance(loss, onnx.FunctionProto) else getattr(loss, "to_function_proto", lambda: None)()
    if not isinstance(proto, onnx.FunctionProto):
        raise InputError(f"loss: {type(loss).__name__} is neither a name nor an ONNX function; use one of {_known()}")
    outputs = list(model.graph.outputs)
    if len(proto.input) < len(outputs) or len(proto.output) != 1:
        raise InputError(
            f"loss function {proto.name!r}: takes {len(proto.input)} inputs and returns {len(proto.output)}; it must take "
            f"the model's {len(outputs)} outputs, then labels, and return one scalar"
        )
    function = ir.serde.deserialize_function(proto)
    types = _label_types(model, proto)
    labels = [_extra_input(model.graph, f"{LABEL}{name}", dtype) for name, dtype in types.items()]
    model.functions[function.identifier()] = function
    for domain, version in function.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, version)
    model.graph.opset_imports.setdefault(proto.domain, 1)
    return op.one(proto.name, *outputs, *labels, _domain=proto.domain)


def _label_types(model: ir.Model, proto: onnx.FunctionProto) -> dict[str, ir.DataType]:
    """Float labels where the function's body allows it, int64 otherwise."""
    names = list(proto.input)[len(model.graph.outputs) :]
    for dtype in (ir.DataType.FLOAT, ir.DataType.INT64):
        if _type_checks(model, proto, len(names), dtype):
            return dict.fromkeys(names, dtype)
    raise InputError(
        f"loss function {proto.name!r}: does not type-check on the model's outputs, neither with float nor with int64 labels"
    )


def _type_checks(model: ir.Model, proto: onnx.FunctionProto, labels: int, dtype: ir.DataType) -> bool:
    types = [onnx.helper.make_tensor_type_proto(int(o.dtype or 1), None) for o in model.graph.outputs]
    types += [onnx.helper.make_tensor_type_proto(int(dtype), None)] * labels
    try:
        onnx.shape_inference.infer_function_output_types(proto, types, [])
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _extra_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Any = None) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            if value.dtype == dtype:
                return value
            raise InputError(
                f"loss: {name.removeprefix(LABEL)!r} would need two types, {value.dtype} and {dtype}; "
                "train with one of the losses"
            )
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=None if shape is None else ir.Shape(list(shape)))
    graph.inputs.append(value)
    return value


def _mean(op: Ops, x: ir.Value) -> ir.Value:
    return op.ReduceMean(x, keepdims=0)


def _float(op: Ops, number: float) -> ir.Value:
    return op.Constant(value=ir.tensor(np.float32(number)))


#: What the labels of a loss are.
_JUDGED: dict[str, Literal["classes", "sides", "values"]] = {
    "cross_entropy": "classes",
    "bce_with_logits": "sides",
    "mse": "values",
    "l1": "values",
}
_TERMS: dict[str, Term] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "l1": _l1,
    "bce_with_logits": _bce_with_logits,
    "distill": _distill,
}
