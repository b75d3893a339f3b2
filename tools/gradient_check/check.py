"""Checks the gradients of a model against directional finite differences of an independent evaluation.

A gradient g of f is right if for a direction v the derivative (f(x + hv) − f(x − hv)) / 2h equals g·v. v takes the
sign of g element by element, so that nothing cancels and an error of 0.1 % of g shows as 0.1 % of the result; where g is
zero its sign is random, so that a missing part shows too. f is evaluated in float64 where an evaluator can, at a point
that is no kink: one-sided differences must agree there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from onnxqat.errors import InputError
from onnxqat.training.gradients import gradients
from tools.gradient_check.evaluators import Array, Arrays, Evaluate, evaluator, is_float, is_floating, moved, seeded

Doubles: TypeAlias = npt.NDArray[np.float64]
Gradients: TypeAlias = Callable[[onnx.ModelProto, Arrays, Sequence[str], Arrays], tuple[Arrays, Arrays]]

_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_NUDGES = (0.0, 1e-2, 3e-2, 1e-1, 3e-1, -1e-2)  # how far the point may move away from ties and kinks


@dataclass(frozen=True)
class Precision:
    """Precision with which a model can be told from its neighbour.

    Attributes:
        steps: step sizes of the finite differences; the first is used whose derivative a longer step confirms.
        ratio: length of that longer step: rounding errors of both would agree at twice the length.
        agreement: relative difference of the two that still counts as agreement.
        tolerance: relative error of a gradient that still counts as right.
    """

    steps: tuple[float, ...]
    ratio: float
    agreement: float
    tolerance: float


_FINE = Precision((1e-7, 1e-6, 1e-5, 1e-4, 1e-3), 10, 1e-4, 3e-4)
_SINGLE = Precision((1e-3, 3e-3, 1e-2), 3, 3e-4, 1e-3)  # where the evaluation rounds to float32 on the way
_HALF = Precision((3e-2, 1e-1, 3e-1, 1.0), 2, 2e-2, 3e-2)  # a model that rounds to half precision is a staircase


@dataclass(frozen=True)
class Verdict:
    """Result of one check.

    Attributes:
        outcome: correct; refused (with the reason); wrong; unchecked (no evaluator computes the operator, or it has
            kinks everywhere); none, if the model has no float input or output.
        reason: what was found.
    """

    outcome: Literal["correct", "refused", "wrong", "unchecked", "none"]
    reason: str = ""


def check_gradients(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    expected: Mapping[str, Array] | None = None,
    *,
    seed: int = 0,
    compute: Gradients = gradients,
) -> Verdict:
    """Checks d(Σ output·cotangent)/d(input) for each float input by itself, with random cotangents.

    Args:
        model: the model.
        feeds: an array for each input, the point where the gradient is taken (moved off kinks where needed).
        expected: outputs at `feeds`, which the evaluation must reproduce to be believed.
        seed: for cotangents and directions.
        compute: what is checked.
    """
    wrt = [value.name for value in model.graph.input if is_float(value) and np.size(feeds.get(value.name, ())) > 0]
    empty = {name for name, array in (expected or {}).items() if isinstance(array, np.ndarray) and array.size == 0}
    outputs = [value.name for value in model.graph.output if is_float(value) and value.name not in empty]
    if not wrt or not outputs:
        return Verdict("none", "no float input" if not wrt else "no float output")
    if any(node.op_type in _RANDOM and not seeded(model) for node in model.graph.node):
        return Verdict("none", "random: no outputs to expect")
    evaluate = evaluator(model, feeds, expected)
    if evaluate is None:
        return _unevaluated(model, feeds, wrt)
    rng = np.random.default_rng(seed)
    verdicts = [_check_input(model, dict(feeds), name, outputs, evaluate, rng, compute) for name in wrt]
    for outcome in ("wrong", "refused", "unchecked"):
        reasons = [f"{n}: {v.reason}" for n, v in zip(wrt, verdicts, strict=True) if v.outcome == outcome]
        if reasons:
            return Verdict(outcome, "; ".join(reasons))
    return Verdict("correct")


def _unevaluated(model: onnx.ModelProto, feeds: Mapping[str, Array], wrt: Sequence[str]) -> Verdict:
    try:
        gradients(model, feeds, wrt)
    except InputError as error:
        return Verdict("refused", str(error))
    return Verdict("unchecked", "no evaluator reproduces the expected outputs")


def _check_input(
    model: onnx.ModelProto,
    feeds: Arrays,
    name: str,
    outputs: Sequence[str],
    evaluate: Evaluate,
    rng: np.random.Generator,
    compute: Gradients,
) -> Verdict:
    failure = Verdict("unchecked", "no point without a kink found")
    for point in _points(feeds, rng):
        try:
            with np.errstate(all="ignore"):
                base = evaluate(point)
        except Exception as error:  # an evaluator may fail in any way outside the operator's domain
            failure = Verdict("unchecked", f"evaluation fails: {error}")
            continue
        cotangents = {key: rng.uniform(0.5, 1.5, base[key].shape).astype(base[key].dtype) for key in outputs}
        try:
            given = {key: value.astype(_dtype(model, key)) for key, value in cotangents.items()}
            _, computed = compute(model, point, [name], given)
        except InputError as error:
            return Verdict("refused", str(error))
        gradient = computed[name]
        if gradient.shape != np.shape(point[name]) or gradient.dtype != point[name].dtype:
            return Verdict("wrong", f"gradient is {gradient.dtype}{gradient.shape}")

        def f(x: Array, point: Arrays = point, cotangents: Arrays = given) -> float:
            with np.errstate(all="ignore"):
                results = evaluate({**point, name: x})
            if any(results[key].shape != cotangents[key].shape for key in cotangents):
                return np.nan  # the output's size changes here: there is no derivative
            return float(
                sum(np.sum(results[key].astype(np.float64) * c.astype(np.float64)) for key, c in cotangents.items())
            )

        verdict = _compare(f, point[name], gradient, rng, _precisions(model, [base[key] for key in outputs]))
        if verdict.outcome != "unchecked":
            return verdict
        failure = verdict
    return failure


def _compare(
    f: Callable[[Array], float],
    x: Array,
    gradient: Array,
    rng: np.random.Generator,
    precisions: Sequence[Precision],
) -> Verdict:
    """Compares along the direction that follows the gradient's signs, and along a random one."""
    g = gradient.astype(np.float64)
    size = rng.uniform(0.5, 1.0, g.shape)
    random_sign = rng.choice([-1.0, 1.0], g.shape)
    aligned = size * np.where(g == 0, random_sign, np.sign(np.nan_to_num(g)))
    point = x.astype(np.float64)
    middle = f(point)
    rounding = 1e-6 * max(1.0, abs(middle))  # a saturated output has a gradient within its rounding
    for direction in (aligned, size * random_sign):
        attempts = ((_derivative(f, point, direction, middle, precision), precision) for precision in precisions)
        found, precision = next((pair for pair in attempts if pair[0] is not None), (None, _FINE))
        if found is None:
            return Verdict(
                "unchecked", "the finite difference does not converge: a kink, or a value that is not finite"
            )
        reported, weight = float(np.sum(g * direction)), float(np.sum(np.abs(g * direction)))
        if not abs(reported - found) <= precision.tolerance * max(weight, abs(found)) + rounding:
            return Verdict("wrong", f"directional derivative {found:.6g}, gradient says {reported:.6g}")
    return Verdict("correct")


def _derivative(
    f: Callable[[Array], float], x: Doubles, v: Doubles, middle: float, precision: Precision
) -> float | None:
    """Returns the derivative of f along v at x, where f is `middle`; None if it has none or cannot be found."""
    k = precision.ratio
    for h in precision.steps:
        differences = [(f(x + step * v) - middle) / step for step in (h, -h, k * h, -k * h)]
        if not np.all(np.isfinite(differences)):
            continue
        forward, backward, forward_k, backward_k = differences
        central, central_k = (forward + backward) / 2, (forward_k + backward_k) / 2
        slack = precision.agreement * max(abs(central), abs(forward), abs(backward), 1e-3)
        # Curvature makes the two sides differ in proportion to h; a kink at the point does so at any h.
        curved = 2 * abs(forward_k - backward_k) / k
        if abs(central - central_k) <= slack and abs(forward - backward) <= slack + curved:
            return central
    return None


def _points(feeds: Arrays, rng: np.random.Generator) -> Iterator[Arrays]:
    """Yields the given point, then ones ever farther from it, to leave ties, kinks, NaN and infinity behind."""
    for nudge in _NUDGES:
        yield {
            name: moved(value, nudge, rng) if is_floating(value) and nudge else value for name, value in feeds.items()
        }


def _precisions(model: onnx.ModelProto, outputs: Iterable[Array]) -> tuple[Precision, ...]:
    """Returns what to try on an evaluation with such outputs, the finest first."""
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    types |= {a.i for node in model.graph.node for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
    if types & set(_HALVES):
        return (_HALF,)
    casts = any(node.op_type == "Cast" for node in model.graph.node) and onnx.TensorProto.FLOAT in types
    single = casts or any(array.dtype == np.float32 for array in outputs)
    return (_SINGLE,) if single else (_FINE, _SINGLE)


def _dtype(model: onnx.ModelProto, output: str) -> np.dtype[np.generic]:
    value = next(value for value in model.graph.output if value.name == output)
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
