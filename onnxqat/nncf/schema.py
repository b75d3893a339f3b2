"""The legacy NNCF configuration (the JSON schema of release 2.14) as types; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from onnxqat.config_parts import Range

#: Keys of NNCF without a counterpart in a configuration, and how to get their effect.
REFUSED = {
    "accuracy_aware_training": "pass validation data to Trainer.fit, which keeps the best epoch; EarlyStopping ends it",
    "compression_lr_multiplier": "scales learn at one rate with weights; lower lr of the optimizer instead",
    "disable_shape_matching": "an ONNX model says itself which sizes are free; remove the key",
    "log_dir": "pass the callback JsonLines or TensorBoard to Trainer.fit",
    "precision": "give the bits of single layers in scope_overrides",
    "batch_multiplier": "pass accumulate to Trainer",
    "lr_poly_drop_start_epoch": "pass schedule to Trainer",
    "lr_poly_drop_duration_epochs": "pass schedule to Trainer",
    "disable_wd_start_epoch": "pass an optimizer without weight_decay to Trainer",
    "base_lr": "pass optimizer=AdamW(lr=…) to Trainer",
    "base_wd": "pass optimizer=AdamW(weight_decay=…) to Trainer",
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list) else "one"


def _only(wanted: bool, remedy: str) -> Callable[[bool | None], bool | None]:
    def check(value: bool | None) -> bool | None:
        if value is not None and value is not wanted:
            raise ValueError(f"is {str(value).lower()}, which is not honoured; {remedy}")
        return value

    return check


Scopes = Annotated[list[str], BeforeValidator(_listed)]
Epoch = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class InputInfo(_Section):
    """One input of the model."""

    sample_size: list[Annotated[int, Field(ge=1)]]
    type: Literal["float", "long"] = "float"
    filler: Literal["ones", "zeros", "random"] = "ones"
    keyword: str | None = None


class Percentiles(_Section):
    """Parameters of the estimators by percentile."""

    min_percentile: float = Field(default=0.1, ge=0, lt=50)
    max_percentile: float = Field(default=99.9, gt=50, le=100)


class RangeInit(_Section):
    """Settings of the estimation of ranges."""

    type: Literal["mixed_min_max", "min_max", "mean_min_max", "threesigma", "percentile", "mean_percentile"] = (
        "mixed_min_max"
    )
    num_init_samples: int = Field(default=256, ge=1)
    params: Percentiles | None = None

    @model_validator(mode="after")
    def _takes_params(self) -> RangeInit:
        if self.params is not None and self.params.model_fields_set and "percentile" not in self.type:
            raise ValueError(f"params: the type {self.type!r} takes no percentiles; remove them")
        return self

    @property
    def range(self) -> Range:
        """The range in the form of `Config`."""
        ends = self.params or Percentiles()
        return Range(
            type=self.type,
            min_percentile=ends.min_percentile,
            max_percentile=ends.max_percentile,
            samples=self.num_init_samples,
        )


class ScopedRangeInit(RangeInit):
    """Settings of the estimation of the ranges of some quantizers."""

    target_scopes: Scopes | None = None
    ignored_scopes: Scopes | None = None
    target_quantizer_group: Literal["weights", "activations"] | None = None

    @model_validator(mode="after")
    def _has_scope(self) -> ScopedRangeInit:
        if self.target_scopes is None and self.ignored_scopes is None:
            raise ValueError("selects no quantizers; give target_scopes or ignored_scopes")
        return self


class BatchnormAdaptation(_Section):
    """Number of samples on which the biases are corrected."""

    num_bn_adaptation_samples: int = Field(default=2000, ge=0)


class Initializer(_Section):
    """Settings of what is determined before training."""

    range: Annotated[
        Annotated[RangeInit, Tag("one")] | Annotated[list[ScopedRangeInit], Tag("many")], Discriminator(_one_or_many)
    ] = RangeInit()
    batchnorm_adaptation: BatchnormAdaptation = BatchnormAdaptation()


class Quantizers(_Section):
    """Constraints on quantizers."""

    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: int | None = Field(default=None, ge=2, le=8)
    signed: bool | None = None
    per_channel: bool | None = None


class OverrideInitializer(_Section):
    """Settings of what is determined before training, for one scope."""

    range: RangeInit


class ScopedQuantizers(Quantizers):
    """Constraints on the quantizers of one scope."""

    initializer: OverrideInitializer | None = None


class QuantizerGroup(Quantizers):
    """Constraints on the weights or the activations."""

    ignored_scopes: Scopes = []
    target_scopes: Scopes | None = None
    logarithm_scale: Annotated[
        bool | None, BeforeValidator(_only(True, "scales are trained as logarithms; remove the key"))
    ] = None


class Activations(QuantizerGroup):
    """Constraints on the activations."""

    unified_scale_ops: list[list[str]] = []


class ScopeOverrides(_Section):
    """Constraints by scope."""

    weights: dict[str, ScopedQuantizers] = {}
    activations: dict[str, ScopedQuantizers] = {}


class Stages(_Section):
    """Epochs in which quantization begins."""

    activations_quant_start_epoch: Epoch = 1
    weights_quant_start_epoch: Epoch = 1


class Quantization(_Section):
    """The algorithm."""

    algorithm: Literal["quantization"]
    initializer: Initializer = Initializer()
    preset: Literal["performance", "mixed"] = "performance"
    quantize_inputs: bool = True
    quantize_outputs: bool = False
    weights: QuantizerGroup = QuantizerGroup()
    activations: Activations = Activations()
    scope_overrides: ScopeOverrides = ScopeOverrides()
    overflow_fix: Literal["enable", "disable", "first_layer_only"] = "enable"
    params: Stages | None = None
    ignored_scopes: Scopes = []
    target_scopes: Scopes | None = None
    export_to_onnx_standard_ops: Annotated[
        bool | None,
        BeforeValidator(_only(True, "models hold QuantizeLinear and DequantizeLinear always; remove the key")),
    ] = None


def _sole_algorithm(value: Any) -> Any:
    """The one algorithm, out of a list if need be."""
    algorithms = _listed(value)
    if not isinstance(algorithms, list):
        return value
    others = [
        a["algorithm"]
        for a in algorithms
        if isinstance(a, dict) and a.get("algorithm", "quantization") != "quantization"
    ]
    if others:
        raise ValueError(f"algorithm {others[0]!r} is not honoured, only 'quantization' is; remove it")
    if len(algorithms) != 1:
        raise ValueError(f"holds {len(algorithms)} algorithms; give exactly one 'quantization'")
    return algorithms[0]


def _known_device(value: Any) -> Any:
    if value in ("GPU", "NPU", "VPU"):
        raise ValueError(f"is {value!r}, which has no table of integer kernels; use 'ANY'")
    return value


class Root(_Section):
    """The whole file."""

    input_info: Annotated[list[InputInfo], BeforeValidator(_listed)] = []
    target_device: Annotated[Literal["ANY", "CPU", "CPU_SPR", "TRIAL"], BeforeValidator(_known_device)] = "ANY"
    compression: Annotated[Quantization, BeforeValidator(_sole_algorithm)]


def keys(section: type[BaseModel] = Root) -> set[str]:
    """Names of all keys that are honoured."""
    found = set(section.model_fields)
    for name in section.model_fields:
        for inner in _models_in(section.model_fields[name].annotation):
            found |= keys(inner)
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
