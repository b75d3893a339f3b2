"""Judgement of Q/DQ models, of any tool, by the tables of targets: from the graph alone, without the runtimes.

The rules are few and general; what they demand follows from the target's facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxqat.checking import codes, floats, foreign, fusing
from onnxqat.checking.findings import Finding, Findings
from onnxqat.checking.judged import Judged
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import io
from onnxqat.graph.qdq import by_output, quantizers
from onnxqat.graph.types import infer
from onnxqat.graph.without import TARGET
from onnxqat.names import NO_TARGETS
from onnxqat.targets import TARGETS, Target

#: Every rule; each yields nothing where the target's facts do not ask for it.
RULES: tuple[Callable[[Judged], Iterator[Finding]], ...] = (
    codes.codes,
    fusing.several_quantizers,
    fusing.inside_fused,
    fusing.residual_adds,
    fusing.joined_scales,
    fusing.moved_signs,
    floats.bias_scales,
    floats.values_in_float,
    floats.layers_in_float,
)
_ORDER = ("refused", "split", "float")


def check(model: io.ModelLike, target: str | None = None) -> Findings:
    """Says what a target's runtime would do with a Q/DQ model that it should not: refuse it, split kernels, compute in float.

    Args:
        model: path of the model, or the model itself: a Q/DQ or deployed model, of this package or of another tool.
        target: name of the target; None: the one that the model was inserted for.

    Returns:
        The findings, each with node, fact and remedy.

    Example:
        ```python
        findings = onnxqat.check("model.int8.onnx", "tensorrt")
        for finding in findings.refused:
            print(finding)
        ```

    Raises:
        InputError: there is no such target, or the model names none.
    """
    loaded = io.load(model, foreign=True)
    named = target or loaded.metadata_props.get(TARGET)
    if named is None:
        raise InputError(f"target: the model names none; say which (--target {'|'.join(TARGETS)})")
    if named in NO_TARGETS:
        raise InputError(f"target: {NO_TARGETS[named]}")
    if named not in TARGETS:
        raise InputError(f"target: no target is called {named!r}; use {' or '.join(map(repr, TARGETS))}")
    return judged(loaded, TARGETS[named])


def judged(model: ir.Model, target: Target) -> Findings:
    """The findings about a model, which gets inferred types."""
    infer(model)
    found = [*floats.refusals(model, target), *foreign.operators(model, target)]
    try:
        held = quantizers(model)
    except UnsupportedModelError:
        if not found:
            raise
        held = []
    target = target.for_codes(held)
    case = Judged(model, target, by_output(held))
    found += [finding for rule in RULES for finding in rule(case)]
    unique = dict.fromkeys(found)
    return Findings(target.name, tuple(sorted(unique, key=lambda one: _ORDER.index(one.kind))))
