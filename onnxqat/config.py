"""What the user asks of `insert`: frozen and validated, so that an invalid request cannot be built; JSON in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx_ir as ir
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from onnxqat.errors import InputError

Bits = Annotated[int, Field(ge=2, le=8)]
Granularity = Literal["per_tensor", "per_channel"]
RangeEstimator = Literal["min_max", "mean_min_max", "percentile", "mse"]
TargetName = Literal["ort-cpu", "openvino", "tensorrt", "qnn"]

#: Metadata of a node that preparation rewrote: the operator that the user's model had there, so that rules find it.
ORIGINAL_TYPE = "onnxqat.original_type"


class _Frozen(BaseModel):
    """Validated, immutable, without unknown keys; an invalid one raises InputError in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_one_line(type(self).__name__, error)) from None


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

    def matches(self, node: ir.Node) -> bool:
        """Whether the node is one that this selects."""
        if self.name is not None:
            return node.name == self.name
        if self.pattern is not None:
            return re.search(self.pattern, node.name or "") is not None
        return self.type in (node.op_type, node.metadata_props.get(ORIGINAL_TYPE))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Override(Select):
    """Settings for the weighted nodes that it selects, over those of the whole configuration.

    `activation_bits` is the width of the values that the node reads.
    """

    weight_bits: Bits | None = None
    weight_symmetric: bool | None = None
    weight_granularity: Granularity | None = None
    weight_range: RangeEstimator | None = None
    activation_bits: Bits | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The fields it sets."""
        return self.model_dump(exclude_none=True, exclude={"name", "pattern", "type"})


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
        weight_range: range estimator of weights; None: `min_max` at 8 bits, `mse` below.
        activation_symmetric: whether the zero point of activations is fixed; None: as the target prefers.
        activation_granularity: `per_channel` (axis 1) has no integer kernel on any target; it is for experiments.
        activation_range: range estimator of activations.
        percentile: for the estimator `percentile`: the share of values, in percent, that the range keeps at each end.
        ignore: nodes that stay in float.
        overrides: settings for single layers; where several select a node, later ones win.
    """

    target: TargetName = "ort-cpu"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    first_last_bits: Bits | None = 8
    weight_symmetric: bool = True
    weight_granularity: Granularity = "per_channel"
    weight_range: RangeEstimator | None = None
    activation_symmetric: bool | None = None
    activation_granularity: Granularity = "per_tensor"
    activation_range: RangeEstimator = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    ignore: Annotated[tuple[Select, ...], BeforeValidator(_as_tuple)] = ()
    overrides: Annotated[tuple[Override, ...], BeforeValidator(_as_tuple)] = ()

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
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not JSON ({error}); mend the file") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no JSON object; write the settings as {{...}}")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _one_line(name: str, error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(p) for p in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error":  # a nested one, which names its own input
            parts.append(f"{where}: {message}" if where else message)
            continue
        if problem["type"] == "extra_forbidden":
            message = "no such key; check its spelling"
        parts.append(f"{where}: {message} (is {problem['input']!r})" if where else message)
    return f"{name}: " + "; ".join(parts)
