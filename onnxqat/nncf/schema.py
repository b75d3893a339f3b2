"""The legacy NNCF configuration (the JSON schema of release 2.14) as types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from onnxqat.config_parts import Range, as_tuples
from onnxqat.nncf.unhonoured import AUTOMATIC_PRECISION, IGNORED, LOST, REFUSED

#: Share of letters in common from which on an unknown key is taken for a slip.
ALIKE = 0.85


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
Bits = Annotated[int, Field(ge=2, le=8)]
#: Value of a key of `IGNORED`.
Unhonoured = Any


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
    num_init_samples: int = Field(default=256, ge=0)
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


class Precision(_Section):
    """Bits of single quantizers: pairs of bits and scope; a scope ends in `|WEIGHT`, `|OUTPUT` or `|INPUT0`, and so on."""

    type: Literal["manual"] = "manual"
    bitwidth_per_scope: tuple[tuple[Bits, str], ...]

    @model_validator(mode="before")
    @classmethod
    def _is_not_searched(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("type") in AUTOMATIC_PRECISION:
            raise ValueError(
                f"type {values['type']!r} chooses bits by itself, as cannot be done here yet; give them by layer, with type "
                "'manual' and bitwidth_per_scope"
            )
        pairs = values.get("bitwidth_per_scope")
        return {**values, "bitwidth_per_scope": as_tuples(pairs)} if isinstance(pairs, list) else values


class Initializer(_Section):
    """Settings of what is determined before training."""

    range: Annotated[
        Annotated[RangeInit, Tag("one")] | Annotated[list[ScopedRangeInit], Tag("many")], Discriminator(_one_or_many)
    ] = RangeInit()
    batchnorm_adaptation: BatchnormAdaptation = BatchnormAdaptation()
    precision: Precision | None = None


class Quantizers(_Section):
    """Constraints on quantizers."""

    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: Bits | None = None
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
    batch_multiplier: Unhonoured = None
    lr_poly_drop_start_epoch: Unhonoured = None
    lr_poly_drop_duration_epochs: Unhonoured = None
    disable_wd_start_epoch: Unhonoured = None
    base_lr: Unhonoured = None
    base_wd: Unhonoured = None


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
    names = [a["algorithm"] for a in algorithms if isinstance(a, dict) and isinstance(a.get("algorithm"), str)]
    others = [name for name in names if name != "quantization"]
    if others:
        lost = f": {LOST[others[0]]}" if others[0] in LOST else ""
        raise ValueError(
            f"algorithm {others[0]!r} is not honoured, only 'quantization' is{lost}; remove it to quantize alone"
        )
    if len(algorithms) != 1:
        raise ValueError(f"holds {len(algorithms)} algorithms; give exactly one 'quantization'")
    return algorithms[0]


def _early_exit(value: Any) -> Any:
    if value == "adaptive_compression_level":
        raise ValueError(
            f"is {value!r}, which looks for a rate of pruning or sparsity, and quantization has none; use 'early_exit'"
        )
    return value


class Degradation(_Section):
    """Loss of accuracy that ends training."""

    maximal_relative_accuracy_degradation: float | None = None
    maximal_absolute_accuracy_degradation: float | None = None
    maximal_total_epochs: int = Field(default=10000, ge=1)

    @model_validator(mode="after")
    def _is_one(self) -> Degradation:
        given = (self.maximal_relative_accuracy_degradation, self.maximal_absolute_accuracy_degradation)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give a relative or an absolute maximal accuracy degradation, and not both")
        return self


class AccuracyAware(_Section):
    """Training that ends as soon as the model is good enough."""

    mode: Annotated[Literal["early_exit"], BeforeValidator(_early_exit)]
    params: Degradation


class Root(_Section):
    """The whole file; keys that NNCF does not have, as those of its samples, are allowed."""

    model_config = ConfigDict(extra="allow")

    input_info: Annotated[list[InputInfo], BeforeValidator(_listed)] = []
    target_device: Literal["ANY", "CPU", "CPU_SPR", "TRIAL", "GPU", "NPU", "VPU"] = "ANY"
    compression: Annotated[Quantization, BeforeValidator(_sole_algorithm)]
    accuracy_aware_training: AccuracyAware | None = None
    disable_shape_matching: Unhonoured = None
    log_dir: Unhonoured = None

    @model_validator(mode="after")
    def _holds_no_slips(self) -> Root:
        for name in self.foreign:
            if name in REFUSED:
                raise ValueError(f"{name}: is not honoured; {REFUSED[name]}")
            if nearest := get_close_matches(name, type(self).model_fields, n=1, cutoff=ALIKE):
                raise ValueError(f"{name}: no such key, but there is {nearest[0]!r}; check its spelling")
        return self

    @property
    def foreign(self) -> list[str]:
        """Names of the keys that NNCF does not have."""
        return list(self.model_extra or ())


def ignored(section: BaseModel) -> dict[str, str]:
    """Keys of `IGNORED` that are given, with the way to get their effect."""
    given = [name for name in type(section).model_fields if name in section.model_fields_set]
    found = {name: IGNORED[name] for name in given if name in IGNORED}
    for name in given:
        inner = getattr(section, name)
        found |= ignored(inner) if isinstance(inner, BaseModel) else {}
    return found


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
