"""Settings of `insert`: frozen and validated, so that an invalid request cannot be built; readable from JSON and YAML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from onnxqat import nncf, settings
from onnxqat.config_parts import (
    ActivationBits,
    Bits,
    BlockSize,
    Frozen,
    Granularity,
    Input,
    Override,
    Range,
    RangeSetting,
    Select,
    Selects,
    Tolerance,
    as_tuple,
    as_tuples,
    one_of,
    shown,
)
from onnxqat.errors import InputError, MissingExtraError
from onnxqat.graph.qdq import WIDE
from onnxqat.names import NO_TARGETS, TARGETS

OverflowFix = Literal["pairs", "enable", "first_layer_only", "disable"]
Correction = Literal["affine", "mean", "none"]
CodeType = Literal["int", "fp8"]


class Config(Frozen):
    """Settings with which `insert` quantizes a model.

    Attributes:
        target: the runtime whose integer kernels decide the placement, by the name of its file in `onnxqat/targets`.
        weight_bits: width of weights.
        activation_bits: width of the values that feed weighted layers, 2 to 8; other values (inputs of a residual Add, pooling)
            keep 8. Or 16, for all values (opset 21): on `qnn` in operators of 16 bits, on `ort-cpu` as a simulation in float.
        weight_type: type of the codes of weights: `int`, or `fp8` for numbers of E4M3 (float8e4m3fn, opset 19) on `tensorrt`;
            `activation_type` is the same then.
        activation_type: type of the codes of activations.
        sixteen: `auto` gives 16 bits to the values that lose most with 8, on a target that runs them. It is measured: each value
            is quantized alone, on a few samples, and the fewest that make most of the noise at the outputs get 16 bits. An
            override's `activation_bits` takes precedence.
        first_last_bits: width in the first and the last weighted layers where `weight_bits` or `activation_bits` is below it,
            for weights and the values they read; None: no exception for them (Esser et al. 2020 keep 8).
        weight_symmetric: whether the zero point of weights is fixed at 0.
        weight_granularity: one scale per output channel, or one per tensor.
        weight_block_size: number of weights along the reduction of MatMul and Gemm that share a scale: 16, 32, 64 or 128; 0: see
            `weight_granularity`. For weights of 4 bits (int4, or uint4 with `weight_symmetric=False`; opset 21), first and last
            layers too, and activations that stay in float.
        embedding_bits: width of tables of embeddings (Gather of a matrix), 8 or 4 with a scale for each row; None: float.
        weight_range: how the ranges of weights are found (see `Range`); None: `min_max` at 8 bits, `mse` below.
        overflow_fix: protection of 8-bit weights from saturation on x86 without VNNI, which adds product pairs in 16
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
        quantize_inputs: whether the model's own inputs are; if not, the layers that read them run in float.
        quantize_outputs: whether the model's outputs are quantized too, where the target does not need it.
        only: nodes that are quantized; all others stay in float. Empty: all.
        ignore: nodes that stay in float.
        overrides: settings for single nodes; where several select a node, later ones win.
        unified_scales: groups of nodes that read all their values with one scale.
        output_correction: what each channel of a weighted layer's output gets back of its float statistics: `affine`, mean and
            deviation; `mean`, by the bias alone; `none`. None: `affine` where anything has fewer than 8 bits, unless it takes
            the model's outputs further from float; else `none`.
        correction_samples: samples on which that is measured.
        activation_start_epoch: epoch of training, from 0, before which activations are not quantized.
        weight_start_epoch: the same for weights.
        tolerance: loss of accuracy at which `run` ends training, `Tolerance`; None: it trains for all epochs.
        inputs: requirements on the model's inputs.
        fixed_inputs: inputs that become constants, with their values: a number, a flag or a list. Branches that they decide are
            taken for good. Or names of free sizes of the inputs, such as `batch`, with the sizes of the deployed model.

    Example:
        ```python
        config = onnxqat.Config(target="openvino", weight_bits=4, ignore=[onnxqat.Select(type="MatMul")])
        qdq = onnxqat.insert("model.onnx", "train.npz", config)
        ```
    """

    target: Annotated[str, one_of("target", TARGETS, NO_TARGETS)] = "ort-cpu"
    weight_bits: Bits = 8
    activation_bits: ActivationBits = 8
    weight_type: CodeType = "int"
    activation_type: CodeType = "int"
    sixteen: Literal["auto"] | None = None
    first_last_bits: Bits | None = 8
    weight_symmetric: bool = True
    weight_granularity: Granularity = "per_channel"
    weight_block_size: BlockSize = 0
    embedding_bits: Literal[4, 8] | None = None
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
    overrides: Annotated[tuple[Override, ...], BeforeValidator(as_tuple)] = ()
    unified_scales: Annotated[tuple[tuple[Select, ...], ...], BeforeValidator(as_tuples)] = ()
    output_correction: Correction | None = None
    correction_samples: int = Field(default=512, ge=1)
    activation_start_epoch: int = Field(default=0, ge=0)
    weight_start_epoch: int = Field(default=0, ge=0)
    tolerance: Tolerance | None = None
    inputs: Annotated[tuple[Input, ...], BeforeValidator(as_tuple)] = ()
    fixed_inputs: dict[str, bool | int | float | list[Any]] = Field(default_factory=dict)

    @property
    def has_few_bits(self) -> bool:
        """Whether anything is quantized to fewer than 8 bits, which may cost accuracy."""
        rules = [
            bits for rule in self.overrides for bits in (rule.weight_bits, rule.activation_bits) if bits is not None
        ]
        return min([self.weight_bits, self.activation_bits, *rules]) < 8

    @property
    def has_float8(self) -> bool:
        """Whether codes are numbers of E4M3 rather than integers."""
        return "fp8" in (self.weight_type, self.activation_type)

    @property
    def has_wide_activations(self) -> bool:
        """Whether activations of 16 bits are asked for anywhere."""
        return self.sixteen is not None or WIDE in (
            self.activation_bits,
            *(rule.activation_bits for rule in self.overrides),
        )

    @property
    def correction(self) -> Correction:
        """`output_correction`, or what None stands for."""
        return self.output_correction or ("affine" if self.has_few_bits else "none")

    @property
    def has_blocks(self) -> bool:
        """Whether blocks of weights are asked for anywhere."""
        return bool(self.weight_block_size or any(override.weight_block_size for override in self.overrides))

    @property
    def rules(self) -> tuple[Select, ...]:
        """Selections of nodes, each of which must select at least one."""
        excluded = (rule for override in self.overrides for rule in override.exclude)
        unified = (rule for group in self.unified_scales for rule in group)
        return (*self.only, *self.ignore, *self.overrides, *excluded, *unified)

    def adding(self, overrides: Iterable[Override] = (), ignore: Iterable[Select] = ()) -> Config:
        """The settings with these rules behind their own."""
        added = {"overrides": (*self.overrides, *overrides), "ignore": (*self.ignore, *ignore)}
        return Config(**{**dict(self), **added})

    def uncalibrated(self) -> Config:
        """The settings without what reads the data: no ranges, no corrected outputs, no choice of activations with 16 bits."""
        ranges = self.activation_range.model_copy(update={"samples": 0})
        return self.model_copy(update={"activation_range": ranges, "output_correction": "none", "sixteen": None})

    @classmethod
    def from_nncf(cls, source: str | Path | dict[str, Any]) -> Config:
        """Reads a legacy NNCF configuration, from a JSON file or a dict; see `Select.scope` for what its scopes name.

        Keys of NNCF's sample scripts (`model`, `batch_size`, …) are ignored with a warning.

        Raises:
            InputError: the file cannot be read, or a key is wrong or not honoured; the message names it.
        """
        return nncf.read(source, cls)

    @classmethod
    def from_json(cls, path: str | Path) -> Config:
        """Reads a JSON file, which may hold comments, whose keys are the attributes above.

        Raises:
            InputError: the file is missing or not JSON, a key is unknown, a value has the wrong type or is out of range.
        """
        return cls._parsed(Path(path), "JSON", settings.from_json)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Reads a YAML file whose keys are the attributes above; needs the extra `yaml`.

        Raises:
            InputError: the file is missing or not YAML, a key is unknown, a value has the wrong type or is out of range.
            MissingExtraError: PyYAML is not installed.
        """
        return cls._parsed(Path(path), "YAML", partial(settings.from_yaml, _yaml()))

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Reads a file by its ending: `.yaml` or `.yml`, or else JSON."""
        return cls.from_yaml(path) if Path(path).suffix in (".yaml", ".yml") else cls.from_json(path)

    def to_json(self) -> str:
        """All settings, defaults too, as text that `from_json` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)

    def to_yaml(self) -> str:
        """All settings, defaults too, as text that `from_yaml` reads; needs the extra `yaml`."""
        return str(_yaml().safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def _parsed(cls, path: Path, kind: str, parse: Callable[[str], Any]) -> Config:
        try:
            values = parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); check the path") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # numbers of too many digits, brackets in brackets, and each library's own
            raise InputError(f"{path}: not {kind} ({shown(error)}); fix the file") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no {kind} object; write the settings by name")
        try:
            return cls(**{str(name): value for name, value in values.items()})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML is not installed; run `pip install 'onnxqat[yaml]'`, or give JSON") from error
    return yaml
