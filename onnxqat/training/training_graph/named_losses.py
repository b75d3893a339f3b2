"""The named losses: one row for each in `NAMED_LOSSES`, which is all that a new one needs.

Labels are called `label`. A loss over the first output reads them; one over all outputs compares these to a teacher's.

- `cross_entropy`: mean over the labels that count; int64 class numbers in the output's shape without its class axis (see
  `onnxqat.data.labels`). Where the output comes from Softmax or LogSoftmax, also through movement and its own quantizer, their
  input is taken as the logits.
- `mse`, `l1`: mean over all elements; float32 labels of the output's shape.
- `bce_with_logits`: mean over all elements; float32 labels in [0, 1] of the output's shape. Where the output comes from Sigmoid,
  its input is taken as the logits.
- `distill`: against a teacher's outputs, no labels: KL divergence (mean over the batch) where an output is made of logits or
  probabilities, mean squared error otherwise (Hinton et al. 2015, temperature 1). What both models mask by infinity counts 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxqat.data.labels import Decisions
from onnxqat.errors import InputError
from onnxqat.graph.ending import ending, varies_in_size
from onnxqat.graph.ops import Ops
from onnxqat.training.training_graph.logits import by_class, logits_of, moved
from onnxqat.training.training_graph.loss_inputs import LABEL, TEACHER, extra_input

log = logging.getLogger(__name__)

#: Labels are numbers of classes, sides of a threshold (between 0 and 1), or values to be met.
Labels: TypeAlias = Literal["classes", "sides", "values"]
#: Bound below which a logarithm of a probability is clipped, so that nothing is subtracted from infinity.
_LEAST_LOG = -1e4


@dataclass(frozen=True)
class Site:
    """Place where a named loss is attached.

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


@dataclass(frozen=True)
class NamedLoss:
    """A loss that users call by its name.

    Attributes:
        term: adds the loss of one output to the graph.
        over: whether it applies to the model's first output, or is summed over all float outputs of fixed size.
        labels: what its labels are; None: it takes none. Accuracy is counted where they are classes or sides.
        activations: operators at the end of a model whose input is the logits that the loss takes.
    """

    term: Callable[[Ops, Site], ir.Value]
    over: Literal["first", "all"] = "first"
    labels: Labels | None = None
    activations: tuple[str, ...] = ()


def known() -> str:
    """The names, for messages."""
    return ", ".join(NAMED_LOSSES)


def weights_of(loss: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """The weight of each loss that is asked for.

    Raises:
        InputError: none is asked for, one is not known, or a weight is not positive.
    """
    weights = dict(loss) if isinstance(loss, Mapping) else dict.fromkeys([loss] if isinstance(loss, str) else loss, 1.0)
    if not weights:
        raise InputError("loss: none given; name one of " + known())
    for name, weight in weights.items():
        if name not in NAMED_LOSSES:
            raise InputError(f"loss {name!r}: not known; use one of {known()}, or an ONNX function")
        if not isinstance(weight, int | float) or not np.isfinite(weight) or weight <= 0:
            raise InputError(f"loss {name!r}: its weight {weight!r} is not a positive number; give one")
    return {name: float(weight) for name, weight in weights.items()}


def labels_of(names: Mapping[str, float]) -> Labels | None:
    """Kind of the labels of several losses: that of the first row of the table that takes some."""
    return next((row.labels for name, row in NAMED_LOSSES.items() if name in names and row.labels is not None), None)


def weighted_sum(op: Ops, sites: Sequence[Site], weights: Mapping[str, float]) -> ir.Value:
    """Adds named losses to a graph; `sites` are its outputs.

    Raises:
        InputError: a loss does not fit the outputs.
    """
    return _sum(op, [_weighted(op, _term(op, sites, name), weight) for name, weight in weights.items()])


def _term(op: Ops, sites: Sequence[Site], name: str) -> ir.Value:
    loss = NAMED_LOSSES[name]
    compared = sites[:1] if loss.over == "first" else _floats_of_fixed_size(sites, name)
    return _sum(op, [loss.term(op, site) for site in compared])


def _floats_of_fixed_size(sites: Sequence[Site], name: str) -> list[Site]:
    floats = [site for site in sites if site.output.dtype in (None, ir.DataType.FLOAT)]
    varying = [site for site in floats if varies_in_size(site.output, site.graph.inputs)]
    for site in varying:
        log.warning("loss %r: leaves out output %r, whose size depends on the data", name, site.output.name)
    fixed = [site for site in floats if site not in varying]
    if not fixed:
        raise InputError(f"loss {name!r}: the model has no float output of fixed size to compare; {_remedy(sites)}")
    return fixed


def _remedy(sites: Sequence[Site]) -> str:
    for site in sites:
        producer = site.output.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            return f"remove QuantizeLinear {producer.name!r} from its end, so that it gives floats"
    return "choose another loss"


def _sum(op: Ops, terms: Sequence[ir.Value]) -> ir.Value:
    total = terms[0]
    for term in terms[1:]:
        total = op.Add(total, term)
    return total


def _weighted(op: Ops, term: ir.Value, weight: float) -> ir.Value:
    return term if weight == 1.0 else op.Mul(term, _float(op, weight))


def _cross_entropy(op: Ops, site: Site) -> ir.Value:
    logits = _logits(op, site, "cross_entropy")
    label = extra_input(site.graph, f"{LABEL}label", ir.DataType.INT64)
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
    logits = _logits(op, site, "bce_with_logits")
    label = _elements(op, site)
    tail = op.Log(op.Add(op.Exp(op.Neg(op.Abs(logits))), _float(op, 1.0)))
    each = op.Add(op.Sub(op.Relu(logits), op.Mul(logits, label)), tail)
    if site.decisions.ignored is None:
        return _mean(op, each)
    total = op.ReduceSum(op.Mul(each, _counted(op, label, site.decisions.ignored)), keepdims=0)
    given = extra_input(site.graph, f"{LABEL}label", ir.DataType.FLOAT)  # how many count is known without the model
    return op.Div(total, op.ReduceSum(_counted(op, given, site.decisions.ignored), keepdims=0))


def _counted(op: Ops, label: ir.Value, ignored: float) -> ir.Value:
    """1 where a label counts, else 0."""
    return op.Cast(op.Not(op.Equal(label, _float(op, ignored))), to=ir.DataType.FLOAT)


def _logits(op: Ops, site: Site, name: str) -> ir.Value:
    losses = {activation: other for other, row in NAMED_LOSSES.items() for activation in row.activations}
    return logits_of(op, site.output, name, losses)


def _elements(op: Ops, site: Site) -> ir.Value:
    """Labels of the output's elements, in its shape: nothing may be broadcast."""
    return op.Reshape(extra_input(site.graph, f"{LABEL}label", ir.DataType.FLOAT), op.Shape(site.output))


def _distill(op: Ops, site: Site) -> ir.Value:
    output = site.output
    teacher = extra_input(site.graph, f"{TEACHER}{output.name}", ir.DataType.FLOAT, output.shape)
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
    """Whether a rank-2 output comes from a fully connected layer, with nothing but quantizers and a bias behind it."""
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


def _mean(op: Ops, x: ir.Value) -> ir.Value:
    return op.ReduceMean(x, keepdims=0)


def _float(op: Ops, number: float) -> ir.Value:
    return op.Constant(value=ir.tensor(np.float32(number)))


#: By name. Of several losses that are summed, the first here that takes labels says what these are.
NAMED_LOSSES: Mapping[str, NamedLoss] = {
    "cross_entropy": NamedLoss(_cross_entropy, labels="classes", activations=("Softmax", "LogSoftmax")),
    "bce_with_logits": NamedLoss(_bce_with_logits, labels="sides", activations=("Sigmoid",)),
    "mse": NamedLoss(_mse, labels="values"),
    "l1": NamedLoss(_l1, labels="values"),
    "distill": NamedLoss(_distill, over="all"),
}
