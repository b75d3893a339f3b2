"""The six models: their data, and how each is quantized and trained, at 8 bits and at a width that breaks it at first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxqat.config import Config
from tools.packages import FOLDER
from tools.real_models.model import Data


@dataclass(frozen=True)
class Recipe:
    """A way to quantize and train a model; the loss is always `distill` against the float model, without labels.

    Attributes:
        name: name of the recipe in tables.
        config: settings of `insert`.
        rates: learning rates that are tried, of AdamW with relative steps; data that is not the judge's chooses.
        steps: optimizer steps of one batch each.
        blocks: optimizer steps for each block in `reconstruct` before, which are tried; 0: blocks are not reconstructed.
    """

    name: str
    config: Config
    rates: tuple[float, ...]
    steps: int
    blocks: tuple[int, ...] = (0,)

    @property
    def uncorrected(self) -> Config:
        """The settings without correction of outputs, which is what insertion alone makes of the model."""
        return self.config.model_copy(update={"output_correction": "none"})


@dataclass(frozen=True)
class RealModel:
    """One of the six models.

    Attributes:
        title: name of the model in tables.
        name: name of its file.
        module: module of tools.real_models that makes its data.
        unit: unit of its score.
        train: number of examples to train on.
        test: number of examples to judge by.
        eight: recipe for 8 bits.
        low: recipe for few bits.
    """

    title: str
    name: str
    module: str
    unit: str
    train: int
    test: int
    eight: Recipe
    low: Recipe

    @property
    def path(self) -> Path:
        """Path where `tools.fetch_models` puts it."""
        return FOLDER / f"{self.name}.onnx"

    def data(self, train: int | None = None, test: int | None = None) -> Data:
        """Its data, or fewer examples of it."""
        make: Callable[[int, int], Data] = importlib.import_module(f"tools.real_models.{self.module}").data
        return make(train or self.train, test or self.test)


def _eight() -> Recipe:
    return Recipe("8 bits", Config(), (1e-5, 1e-4), 50)


def _low(bits: int, steps: int, **settings: object) -> Recipe:
    """One scale for the whole weight: far harder than one per channel."""
    config = Config(weight_bits=bits, weight_granularity="per_tensor", **settings)  # type: ignore[arg-type]
    ends = "" if config.first_last_bits is None else ", 8 in first and last layer"
    ranges = ", min-max ranges" if "weight_range" in settings else ""
    return Recipe(f"{bits} bits per tensor{ends}{ranges}", config, (1e-3, 4e-3), steps, blocks=(0, 60))


MODELS = (
    RealModel("text recognition", "ocr", "words", "%", 400, 200, _eight(), _low(6, 120, first_last_bits=None)),
    RealModel("page orientation", "orientation", "pages", "%", 320, 200, _eight(), _low(4, 120)),
    RealModel("file type", "file_type", "files", "%", 800, 300, _eight(), _low(2, 60, first_last_bits=None)),
    RealModel(
        "pitch", "pitch", "tones", "%", 1600, 400, _eight(), _low(4, 50, first_last_bits=None, weight_range="min_max")
    ),
    RealModel("super-resolution", "super_resolution", "photos", "dB", 800, 6, _eight(), _low(4, 400, first_last_bits=None)),
    RealModel("sentence embedding", "sentences", "texts", "%", 400, 1300, _eight(), _low(3, 60, first_last_bits=None)),
)  # fmt: skip
