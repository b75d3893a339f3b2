"""Translates NNCF's settings into ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from onnxqat.config_parts import Input, Override, Select, Tolerance
from onnxqat.errors import InputError
from onnxqat.nncf.schema import (
    InputInfo,
    Quantization,
    QuantizerGroup,
    Quantizers,
    RangeInit,
    Root,
    ScopedQuantizers,
    ScopedRangeInit,
)
from onnxqat.nncf.scopes import EXPRESSION, expression, is_of_names

#: Devices whose 8-bit products may overflow without `overflow_fix`.
SATURATING = ("ANY", "CPU")


def translate(root: Root) -> dict[str, Any]:
    """Values, by key, of the configuration with the same meaning.

    Raises:
        InputError: keys contradict each other, or one has no effect beside the others.
    """
    algorithm, trial = root.compression, root.target_device == "TRIAL"
    weights, activations, stages = algorithm.weights, algorithm.activations, algorithm.params
    staged = stages is not None and bool(stages.model_fields_set)
    mode = activations.mode or ("symmetric" if algorithm.preset == "performance" else "asymmetric")
    given = algorithm.initializer.range
    ranges = given.range if isinstance(given, RangeInit) else RangeInit().range
    weights_per_channel = not trial if weights.per_channel is None else weights.per_channel
    return dict(
        target="openvino",
        inputs=tuple(_input(info) for info in root.input_info),
        weight_bits=weights.bits or 8,
        activation_bits=activations.bits or 8,
        first_last_bits=None,
        weight_symmetric=weights.mode != "asymmetric",
        weight_granularity=_granularity(weights_per_channel),
        weight_range=ranges,
        overflow_fix=_overflow_fix(root),
        activation_symmetric=mode == "symmetric",
        activation_signed=activations.signed,
        activation_granularity=_granularity(bool(activations.per_channel)),
        activation_range=ranges,
        quantize_inputs=algorithm.quantize_inputs,
        quantize_outputs=algorithm.quantize_outputs,
        ignore=tuple(_select(scope) for scope in algorithm.ignored_scopes),
        unified_scales=tuple(tuple(_select(name) for name in group) for group in activations.unified_scale_ops),
        **_correction(algorithm.initializer.batchnorm_adaptation.num_bn_adaptation_samples, weights, activations),
        activation_start_epoch=stages.activations_quant_start_epoch if stages is not None and staged else 0,
        weight_start_epoch=stages.weights_quant_start_epoch if stages is not None and staged else 0,
        tolerance=_tolerance(root),
        **_scoped(algorithm),
    )


def _correction(samples: int, weights: QuantizerGroup, activations: QuantizerGroup) -> dict[str, Any]:
    """Returns what takes the place of adapting BatchNormalization, which is folded."""
    if not samples:
        return {"output_correction": "none"}
    few = min(weights.bits or 8, activations.bits or 8) < 8
    return {"output_correction": "affine" if few else "mean", "correction_samples": samples}


def _scoped(algorithm: Quantization) -> dict[str, Any]:
    """Returns the settings of single nodes: the nodes that are quantized at all, and the overrides."""
    weights, activations = algorithm.weights, algorithm.activations
    _check_signed(weights, "weights")
    only: tuple[Select, ...] = ()
    settings: dict[str, Any] = {}
    overrides: list[Override] = []
    if weights.target_scopes is None and activations.target_scopes is None:
        only = tuple(_select(scope) for scope in algorithm.target_scopes or ())
    else:
        for name, group in (("quantize_weights", weights), ("quantize_activations", activations)):
            targets = group.target_scopes if group.target_scopes is not None else algorithm.target_scopes
            settings[name] = targets is None
            overrides += [_override(scope, {name: True}) for scope in targets or ()]
    overrides += [_override(scope, {"quantize_weights": False}) for scope in weights.ignored_scopes]
    overrides += [_override(scope, {"quantize_activations": False}) for scope in activations.ignored_scopes]
    if not isinstance(algorithm.initializer.range, RangeInit):
        overrides += [rule for scoped in algorithm.initializer.range for rule in _range_overrides(scoped)]
    if algorithm.initializer.precision is not None:
        overrides += [_precision(bits, scope) for bits, scope in algorithm.initializer.precision.bitwidth_per_scope]
    for scope, one in algorithm.scope_overrides.weights.items():
        _check_signed(one, f"scope_overrides.weights.{scope}")
        overrides.append(_override(scope, _settings(one, "weight")))
    for scope, one in algorithm.scope_overrides.activations.items():
        signed = {} if one.signed is None else {"activation_signed": one.signed}
        overrides.append(_override(scope, _settings(one, "activation") | signed))
    return {"only": only, "overrides": tuple(overrides), **settings}


def _precision(bits: int, scope: str) -> Override:
    """Bits of one quantizer, which NNCF names by node and port: `Net/Conv2d[c]/conv2d_0|WEIGHT`."""
    node, _, port = scope.rpartition("|")
    if port == "WEIGHT":
        return Override(scope=node, weight_bits=bits)
    if port == "OUTPUT":
        return Override(scope=scope, activation_bits=bits)
    if port.startswith("INPUT"):
        return Override(scope=node, activation_bits=bits)
    raise InputError(
        f"compression.initializer.precision.bitwidth_per_scope: {scope!r} names no quantizer; end it in |WEIGHT, |OUTPUT or "
        "|INPUT0"
    )


def _tolerance(root: Root) -> Tolerance | None:
    if root.accuracy_aware_training is None:
        return None
    params = root.accuracy_aware_training.params
    return Tolerance(
        relative=params.maximal_relative_accuracy_degradation,
        absolute=params.maximal_absolute_accuracy_degradation,
        epochs=params.maximal_total_epochs,
    )


def _range_overrides(scoped: ScopedRangeInit) -> list[Override]:
    group = scoped.target_quantizer_group
    named = {"weights": {"weight_range": scoped.range}, "activations": {"activation_range": scoped.range}}
    settings = named[group] if group is not None else named["weights"] | named["activations"]
    exclude = [_select(scope) for scope in scoped.ignored_scopes or ()]
    return [_override(scope, settings, exclude) for scope in scoped.target_scopes or ("{re}",)]


def _settings(one: ScopedQuantizers, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{kind}_symmetric": None if one.mode is None else one.mode == "symmetric",
        f"{kind}_bits": one.bits,
        f"{kind}_granularity": None if one.per_channel is None else _granularity(one.per_channel),
        f"{kind}_range": None if one.initializer is None else one.initializer.range.range,
    }
    return {name: value for name, value in found.items() if value is not None}


def _check_signed(one: Quantizers, where: str) -> None:
    if one.signed is False:
        raise InputError(f"compression.{where}.signed: is false, but the codes of weights are signed; remove the key")


def _overflow_fix(root: Root) -> Literal["enable", "disable", "first_layer_only"]:
    asked = root.compression.overflow_fix
    if root.target_device in SATURATING or asked == "disable":
        return asked
    if "overflow_fix" in root.compression.model_fields_set:
        raise InputError(
            f"compression.overflow_fix: {asked!r} has no effect on target_device {root.target_device!r}; "
            f"use {' or '.join(map(repr, SATURATING))}, or 'disable'"
        )
    return "disable"


def _granularity(per_channel: bool) -> Literal["per_channel", "per_tensor"]:
    return "per_channel" if per_channel else "per_tensor"


def _override(scope: str, settings: dict[str, Any], exclude: Sequence[Select] = ()) -> Override:
    return Override(**_select(scope).model_dump(exclude_none=True), exclude=tuple(exclude), **settings)


def _select(scope: str) -> Select:
    if EXPRESSION not in scope:
        return Select(scope=scope)
    if not is_of_names(scope):
        return Select(pattern=scope.replace(EXPRESSION, ""))
    expression(scope)
    return Select(scope=scope)


def _input(info: InputInfo) -> Input:
    dtypes: dict[str, Literal["float32", "int64"]] = {"float": "float32", "long": "int64"}
    return Input(name=info.keyword, shape=tuple(info.sample_size), dtype=dtypes[info.type], filler=info.filler)
