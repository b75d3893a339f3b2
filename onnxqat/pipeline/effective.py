"""All settings of a call, defaults and those of presets included, as text for its folder; the log says what the data chose."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from onnxqat import __version__
from onnxqat.config import Config
from onnxqat.pipeline.request import Data, Judge, Training


def effective(config: Config, *requests: Data | Training | Judge) -> str:
    """The settings as JSON text: version, data, training and judging, and under `quantization` what `--config` takes."""
    plain = {type(one).__name__.lower(): _plain(one) for one in requests}
    settings = {"version": __version__, **plain, "quantization": config.model_dump(mode="json")}
    return json.dumps(settings, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """A setting in a form that JSON holds; models and functions by what they are called."""
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(getattr(value, "__name__", None) or getattr(value, "name", None) or value)
