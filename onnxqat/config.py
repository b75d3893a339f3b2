"""What the user asks of `insert`: frozen and validated, so that an invalid request cannot be built; JSON in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx_ir as ir
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from onnxqat.errors import InputError
from onnxqat.names import TargetName

Bits = Annotated[int, Field(ge=2, le=8)]
Granularity = Literal["per_tensor", "per_channel"]
RangeEstimator = Literal[
    "min_max", "mean_min_max", "mixed_min_max", "percentile", "mean_percentile", "threesigma", "mse"
]
OverflowFix = Literal["pairs", "enable", "first_layer_only", "disable"]

#: Metadata of a node that preparation rewrote: the operator that the user's model had there, so that rules find it.
ORIGINAL_TYPE = "onnxqat.original_type"


class _Frozen(BaseModel):
    """Validated, immutable, without unknown keys; an invalid one raises InputError in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(one_line(type(self).__name__, error)) from None


class Select(_Frozen):
    """Names nodes: by exact `name`, by regular expression `pattern` (anywhere in the name), or by operator `type`."""

    name: str | None = None
    pattern: str | None = None
    type: str | None = None

    @model_validator(mode="after")
    def _names_one_way(self) -> Select:
        if sum(v is not None for v in (self.name, self.pattern, self.type)) != 1:
            raise ValueError("give exactly one of name, pattern and type")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from error
        return self

    @property
    def shown(self) -> str:
        """How messages name it: `pattern '^head'`."""
        kind = next(kind for kind in ("name", "pattern", "type") if getattr(self, kind) is not None)
        return f"{kind} {getattr(self, kind)!r}"

    def matches(self, node: ir.Node) -> bool:
        """Whether the node is one that this selects."""
        if self.name is not None:
            return node.name == self.name
        if self.pattern is not None:
            return re.search(self.pattern, node.name or "") is not None
        return self.type in (node.op_type, node.metadata_props.get(ORIGINAL_TYPE))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


Selects = Annotated[tuple[Select, ...], BeforeValidator(_as_tuple)]


class Range(_Frozen):
    """How a range is found; written as the name of the estimator alone where the rest is left to the configuration.

    Attributes:
        type: `min_max`: smallest and largest value. `mean_min_max`: their means over samples. `mixed_min_max`: the mean of the
            largest values over samples and, where the zero point is fitted, of the smallest ones (per channel: `min_max`).
            `percentile`: of all values. `mean_percentile`: means over samples of each sample's percentiles. `threesigma`:
            the median of what is not 0, give or take three of its deviations (1.4826 times the median absolute deviation).
            `mse`: the share of the full range with the least squared error. A weight counts as one sample.
        min_percentile: lower end for the percentiles; None: as far from 0 as `Config.percentile` is from 100.
        max_percentile: upper end; None: `Config.percentile`.
        samples: how many samples of the calibration data count; None: all.
    """

    type: RangeEstimator
    min_percentile: float | None = Field(default=None, ge=0, lt=50)
    max_percentile: float | None = Field(default=None, gt=50, le=100)
    samples: int | None = Field(default=None, ge=1)


def _as_range(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


RangeSetting = Annotated[Range, BeforeValidator(_as_range)]


class Override(Select):
    """Settings for the nodes that it selects, over those of the whole configuration.

    Those of activations hold for the values that the node reads, or, for a node that reads none as integers (Relu), for the
    one that it computes; `activation_bits` for what a weighted node reads.
    """

    exclude: Selects = ()
    quantize_weights: bool | None = None
    quantize_activations: bool | None = None
    weight_bits: Bits | None = None
    weight_symmetric: bool | None = None
    weight_granularity: Granularity | None = None
    weight_range: RangeSetting | None = None
    activation_bits: Bits | None = None
    activation_symmetric: bool | None = None
    activation_signed: bool | None = None
    activation_granularity: Granularity | None = None
    activation_range: RangeSetting | None = None

    def matches(self, node: ir.Node) -> bool:
        """Whether the node is one that this selects and does not exclude."""
        return super().matches(node) and not any(rule.matches(node) for rule in self.exclude)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields it sets."""
        fields = set(type(self).model_fields) - {"name", "pattern", "type", "exclude"}
        return {name: value for name in sorted(fields) if (value := getattr(self, name)) is not None}


class Input(_Frozen):
    """What an input of the model must be: checked before anything else is done.

    Attributes:
        name: which input; None: the one in this place of the list.
        shape: sizes of a sample batch.
        dtype: element type.
        filler: what the sample batch is filled with, on which the model is run once.
    """

    name: str | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_as_tuple)]
    dtype: Literal["float32", "int64"] = "float32"
    filler: Literal["ones", "zeros", "random"] = "ones"


class Config(_Frozen):
    """How `insert` quantizes a model.

    Attributes:
        target: the runtime whose integer kernels decide the placement.
        weight_bits: width of weights.
        activation_bits: width of the values that feed weighted layers; other values (inputs of a residual Add, pooling) keep 8.
        first_last_bits: width in the first and the last weighted layers where `weight_bits` or `activation_bits` is below it,
            for weights and the values they read; None: no exception for them (Esser et al. 2020 keep 8).
        weight_symmetric: whether the zero point of weights is fixed at 0.
        weight_granularity: one scale per output channel, or one per tensor.
        weight_range: how the ranges of weights are found (see `Range`); None: `min_max` at 8 bits, `mse` below.
        overflow_fix: what keeps 8-bit weights from saturating on x86 processors without VNNI, which add products in pairs in 16
            bits. `pairs`: scales at which no two weights that a kernel adds as a pair reach beyond, kept up by training; costs
            no time and hardly accuracy, and covers what a narrower `weight_range` would cut off. As in NNCF: `enable`, only the
            codes -64 to 63; `first_layer_only`, these where an input reaches the layer first; `disable`, nothing.
        activation_symmetric: whether the zero point of activations is fixed; None: as the target prefers.
        activation_signed: whether symmetric codes cover negative numbers: always, or only (False or None) where there are any.
        activation_granularity: `per_channel` (axis 1) has no integer kernel on any target; it is for experiments.
        activation_range: how the ranges of activations are found (see `Range`).
        percentile: for the estimators by percentile: the share of values, in percent, that the range keeps at each end.
        quantize_weights: whether weights are quantized, where no override says otherwise.
        quantize_activations: whether activations are.
        quantize_inputs: whether the model's own inputs are; the layers that read them then run in float.
        quantize_outputs: whether the model's outputs are quantized too, where the target does not need it.
        only: nodes that are quantized; all others stay in float. Empty: all.
        ignore: nodes that stay in float.
        overrides: settings for single nodes; where several select a node, later ones win.
        unified_scales: groups of nodes that read all their values with one scale.
        bias_correction: samples on which the biases of weighted layers are corrected for the mean error of quantization, one
            layer after the other, in whole batches; 0: none. It helps where weights are rounded (`min_max`); where they are
            cut off (`mse`) the error grows with the value, and a constant makes it worse.
        activation_start_epoch: epoch of training, from 0, before which activations are not quantized.
        weight_start_epoch: the same for weights.
        inputs: what the model's inputs must be.
        fixed_inputs: inputs that become constants, with their values: a number, a flag or a list. Branches that they decide are
            taken for good.
    """

    target: TargetName = "ort-cpu"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    first_last_bits: Bits | None = 8
    weight_symmetric: bool = True
    weight_granularity: Granularity = "per_channel"
    weight_range: RangeSetting | None = None
    overflow_fix: OverflowFix = "pairs"
    activation_symmetric: bool | None = None
    activation_signed: bool | None = None
    activation_granularity: Granularity = "per_tensor"
    activation_range: RangeSetting = Range(type="mse")
    percentile: float = Field(default=99.99, gt=50, le=100)
    quantize_weights: bool = True
    quantize_activations: bool = True
    quantize_inputs: bool = True
    quantize_outputs: bool = False
    only: Selects = ()
    ignore: Selects = ()
    overrides: Annotated[tuple[Override, ...], BeforeValidator(_as_tuple)] = ()
    unified_scales: Annotated[tuple[tuple[Select, ...], ...], BeforeValidator(_as_tuples)] = ()
    bias_correction: int = Field(default=0, ge=0)
    activation_start_epoch: int = Field(default=0, ge=0)
    weight_start_epoch: int = Field(default=0, ge=0)
    inputs: Annotated[tuple[Input, ...], BeforeValidator(_as_tuple)] = ()
    fixed_inputs: dict[str, bool | int | float | list[Any]] = Field(default_factory=dict)

    @property
    def rules(self) -> tuple[Select, ...]:
        """All that selects nodes, each of which must select one."""
        excluded = (rule for override in self.overrides for rule in override.exclude)
        unified = (rule for group in self.unified_scales for rule in group)
        return (*self.only, *self.ignore, *self.overrides, *excluded, *unified)

    @classmethod
    def from_nncf(cls, source: str | Path | dict[str, Any]) -> Config:
        """Reads a legacy NNCF configuration, from a JSON file or a dict; its scopes name ONNX nodes.

        Raises:
            InputError: the file cannot be read, or a key is unknown, wrong, or not honoured; the message names it.
        """
        from onnxqat import nncf  # it builds on this module

        return nncf.read(source)

    @classmethod
    def from_json(cls, path: str | Path) -> Config:
        """Reads a JSON file whose keys are the attributes above.

        Raises:
            InputError: the file is missing or not JSON, a key is unknown, a value has the wrong type or is out of range.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); check the path") from error
        except (ValueError, RecursionError) as error:  # numbers of too many digits, brackets in brackets
            raise InputError(f"{path}: not JSON ({shown(error)}); mend the file") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no JSON object; write the settings as {{...}}")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def shown(value: object) -> str:
    """A value that may be of any size, or an error, in at most 200 characters."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def one_line(name: str, error: ValidationError) -> str:
    """What is wrong with a value of a model of that name: where, why, and what it is."""
    parts = []
    for problem in error.errors():
        where = ".".join(shown(p).strip("'") for p in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error":  # a nested one, which names its own input
            parts.append(f"{where}: {message}" if where else message)
            continue
        if problem["type"] == "extra_forbidden":
            message = "no such key; check its spelling"
        parts.append(f"{where}: {message} (is {shown(problem['input'])})" if where else message)
    return f"{name}: " + "; ".join(parts)
