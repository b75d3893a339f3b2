"""Parts of a configuration, each frozen and validated: which nodes, how a range is found, what an input must be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import onnx_ir as ir
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from onnxqat.errors import InputError, cut
from onnxqat.estimators.table import ESTIMATORS


def _runs(bits: int) -> int:
    if 8 < bits < 16:
        raise ValueError("give 2 to 8, or 16")
    return bits


Bits = Annotated[int, Field(ge=2, le=8)]
ActivationBits = Annotated[int, Field(ge=2, le=16), AfterValidator(_runs)]
Granularity = Literal["per_tensor", "per_channel"]
#: Sizes of blocks that runtimes have kernels for; 0: no blocks.
BlockSize = Literal[0, 16, 32, 64, 128]

#: Metadata of a node that preparation rewrote: the operator that the user's model had there, so that rules find it.
ORIGINAL_TYPE = "onnxqat.original_type"


#: Ways to select nodes.
WAYS = ("name", "pattern", "type", "scope")


class Frozen(BaseModel):
    """Validated, immutable, without unknown keys; an invalid one raises InputError in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(one_line(type(self).__name__, error)) from None


class Select(Frozen):
    """Selects nodes in one of four ways, of which exactly one is given.

    Attributes:
        name: exact name of a node.
        pattern: regular expression, searched for anywhere in the name.
        type: operator, as the model has it or as the user's model had it before preparation.
        scope: name that NNCF gives it, `Net/Sequential[features]/NNCFConv2d[0]/conv2d_0`, found by its path of modules; a name of
            a Keras layer; or an expression of such names that begins with `{re}`. `|OUTPUT` at the end selects the weighted nodes
            that read what the node computes.

    Example:
        ```python
        onnxqat.Config(ignore=[onnxqat.Select(name="head/MatMul"), onnxqat.Select(pattern="^decoder")])
        ```
    """

    name: str | None = None
    pattern: str | None = None
    type: str | None = None
    scope: str | None = None

    @model_validator(mode="after")
    def _names_one_way(self) -> Select:
        if sum(getattr(self, way) is not None for way in WAYS) != 1:
            raise ValueError("give exactly one of name, pattern, type and scope")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from error
        return self

    @property
    def shown(self) -> str:
        """Returns the form in which messages name it: `pattern '^head'`."""
        kind = next(kind for kind in WAYS if getattr(self, kind) is not None)
        return f"{kind} {getattr(self, kind)!r}"

    def matches(self, node: ir.Node) -> bool:
        """Whether the node is one that this selects; a scope has become a name or a pattern by then."""
        if self.name is not None:
            return node.name == self.name
        if self.pattern is not None:
            return re.search(self.pattern, node.name or "") is not None
        return self.type is not None and self.type in (node.op_type, node.metadata_props.get(ORIGINAL_TYPE))


def as_tuple(value: Any) -> Any:
    """A list, which JSON has, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def as_tuples(value: Any) -> Any:
    """Lists in a list as tuples in a tuple."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


Selects = Annotated[tuple[Select, ...], BeforeValidator(as_tuple)]


def one_of(kind: str, names: Iterable[str], reasons: Mapping[str, str] | None = None) -> AfterValidator:
    """Check that a string is one of the names, which the files of a package give, or say why it is none."""
    known = tuple(names)

    def check(name: str) -> str:
        if name in (reasons or {}):
            raise ValueError((reasons or {})[name])
        if name not in known:
            raise ValueError(f"no {kind} is called {shown(name)}; use {' or '.join(map(repr, known))}")
        return name

    return AfterValidator(check)


class Range(Frozen):
    """Estimator of a range; its name alone may stand for it where the rest is left to the configuration.

    Attributes:
        type: the estimator, by its name in the table of `onnxqat.estimators.table`, which says what each does.
        min_percentile: lower end for the percentiles; None: as far from 0 as `Config.percentile` is from 100.
        max_percentile: upper end; None: `Config.percentile`.
        samples: how many samples of the calibration data count; None: all; 0: none is read, and the range of activations is -1 to
            1 until training or a checkpoint sets it.

    Example:
        ```python
        from onnxqat.config import Range

        onnxqat.Config(activation_range=Range(type="percentile", max_percentile=99.9, samples=256))
        ```
    """

    type: Annotated[str, one_of("estimator", ESTIMATORS)]
    min_percentile: float | None = Field(default=None, ge=0, lt=50)
    max_percentile: float | None = Field(default=None, gt=50, le=100)
    samples: int | None = Field(default=None, ge=0)


def _as_range(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


RangeSetting = Annotated[Range, BeforeValidator(_as_range)]


class Override(Select):
    """Settings for the nodes that it selects, over those of the whole configuration.

    Those of activations hold for the values that the node reads, or, for a node that reads none as integers (Relu), for the
    one that it computes; `activation_bits` for what a weighted node reads, or 16 for any. None leaves a setting to the
    configuration.

    Attributes:
        name: exact name of a node.
        pattern: regular expression, searched for anywhere in the name.
        type: operator, as the model has it or as the user's model had it before preparation.
        scope: name that NNCF gives it (see `Select`).
        exclude: selected nodes to which the override does not apply.
        quantize_weights: whether weights are quantized.
        quantize_activations: whether activations are quantized.
        weight_bits: width of weights, 2 to 8.
        weight_symmetric: whether the zero point of weights is fixed at 0.
        weight_granularity: one scale per output channel, or one per tensor.
        weight_block_size: number of weights along the reduction that share a scale; 0: see `weight_granularity`.
        weight_range: estimator of the range of weights (see `Range`).
        activation_bits: width of the values that a weighted node reads, 2 to 8; or 16, for any node.
        activation_symmetric: whether the zero point of activations is fixed.
        activation_signed: whether symmetric codes cover negative numbers even where there are none.
        activation_granularity: one scale per tensor, or one per channel (axis 1).
        activation_range: estimator of the range of activations (see `Range`).

    Example:
        ```python
        onnxqat.Config(weight_bits=4, overrides=[onnxqat.Override(pattern="^head", weight_bits=8)])
        ```
    """

    exclude: Selects = ()
    quantize_weights: bool | None = None
    quantize_activations: bool | None = None
    weight_bits: Bits | None = None
    weight_symmetric: bool | None = None
    weight_granularity: Granularity | None = None
    weight_block_size: BlockSize | None = None
    weight_range: RangeSetting | None = None
    activation_bits: ActivationBits | None = None
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
        fields = set(type(self).model_fields) - {*WAYS, "exclude"}
        return {name: value for name in sorted(fields) if (value := getattr(self, name)) is not None}


class Tolerance(Frozen):
    """Loss of accuracy at which training may end early (NNCF's accuracy-aware training); one of the first two is given.

    Attributes:
        relative: in percent of the float model's accuracy.
        absolute: in units of the metric.
        epochs: how many epochs to train at most, where nothing else says; None: as many as without it.

    Example:
        ```python
        from onnxqat.config import Tolerance

        tolerance = Tolerance(relative=1.0, epochs=20)
        trainer.fit(batches, epochs=20, validation=others, until=("accuracy", tolerance.bound(0.93)))
        ```
    """

    relative: float | None = None
    absolute: float | None = None
    epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_one(self) -> Tolerance:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give exactly one of relative and absolute")
        return self

    def bound(self, float_score: float) -> float:
        """Smallest score that is good enough, from that of the float model."""
        if self.relative is not None:
            return float_score * (1 - self.relative / 100)
        return float_score - (self.absolute or 0.0)


class Input(Frozen):
    """Requirements on an input of the model, checked before anything else is done.

    Attributes:
        name: which input; None: the one in this place of the list.
        shape: sizes of a sample batch.
        dtype: element type.
        filler: content of the sample batch, on which the model is run once.

    Example:
        ```python
        from onnxqat.config import Input

        onnxqat.Config(inputs=[Input(name="image", shape=(1, 3, 224, 224))])
        ```
    """

    name: str | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)]
    dtype: Literal["float32", "int64"] = "float32"
    filler: Literal["ones", "zeros", "random"] = "ones"


def shown(value: object) -> str:
    """A value that may be of any size, or an error, in at most 200 characters."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return cut(text, 200)


#: Findings that one message tells.
MOST_PROBLEMS = 3


def worded(problem: Any) -> str:
    """Returns pydantic's finding as the end of a sentence: `it must be less than or equal to 8`."""
    return str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "it must", 1)


def one_line(name: str, error: ValidationError) -> str:
    """Returns the first error in a value of the model of that name as one line: where, why, and what the value is."""
    parts = []
    for problem in error.errors():
        where = ".".join(shown(p).strip("'") for p in problem["loc"])
        message = worded(problem)
        if problem["type"] == "value_error":  # a nested one, which names its own input
            parts.append(f"{where}: {message}" if where else message)
            continue
        if problem["type"] == "extra_forbidden":
            message = "no such key; check its spelling"
        parts.append(f"{where}: {message} (is {shown(problem['input'])})" if where else message)
    more = [f"and {len(parts) - MOST_PROBLEMS} more"] if len(parts) > MOST_PROBLEMS else []
    return f"{name}: " + "; ".join(parts[:MOST_PROBLEMS] + more)
