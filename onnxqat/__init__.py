"""Quantization-aware training on the ONNX graph itself.

Public names load on use (PEP 562), so that importing the package takes no longer than it must.
"""

from __future__ import annotations

from onnxqat.process.search_path import put_current_folder_last

put_current_folder_last()

# isort: split
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where each public name is; the module itself where it has the same name.
_HOMES = {
    "SGD": "onnxqat.training.optimize.optimizers",
    "AdamW": "onnxqat.training.optimize.optimizers",
    "Config": "onnxqat.config",
    "Constant": "onnxqat.training.optimize.schedules",
    "Cosine": "onnxqat.training.optimize.schedules",
    "Execution": "onnxqat.training.execution",
    "InputError": "onnxqat.errors",
    "MissingExtraError": "onnxqat.errors",
    "OnnxqatError": "onnxqat.errors",
    "Override": "onnxqat.config_parts",
    "Report": "onnxqat.verification.report",
    "Select": "onnxqat.config_parts",
    "StepDecay": "onnxqat.training.optimize.schedules",
    "Trainer": "onnxqat.training.trainer",
    "TrainingError": "onnxqat.errors",
    "UnsupportedModelError": "onnxqat.errors",
    "callbacks": "onnxqat.callbacks",
    "check": "onnxqat.checking",
    "data": "onnxqat.data",
    "evaluate": "onnxqat.verification.run",
    "export_training": "onnxqat.training.portable.export",
    "faster": "onnxqat.search.latency.choice",
    "fold": "onnxqat.folding",
    "gradients": "onnxqat.training.gradients",
    "insert": "onnxqat.insertion",
    "layers": "onnxqat.search.layers.measure",
    "mixed_precision": "onnxqat.search.mixed.search",
    "reconstruct": "onnxqat.search.reconstruction.reconstruct",
    "save": "onnxqat.graph.io",
    "sensitivity": "onnxqat.search.sensitivity.trials",
    "verify": "onnxqat.verification.run",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from onnxqat import callbacks as callbacks
    from onnxqat import data as data
    from onnxqat.checking import check as check
    from onnxqat.config import Config as Config
    from onnxqat.config_parts import Override as Override
    from onnxqat.config_parts import Select as Select
    from onnxqat.errors import InputError as InputError
    from onnxqat.errors import MissingExtraError as MissingExtraError
    from onnxqat.errors import OnnxqatError as OnnxqatError
    from onnxqat.errors import TrainingError as TrainingError
    from onnxqat.errors import UnsupportedModelError as UnsupportedModelError
    from onnxqat.folding import fold as fold
    from onnxqat.graph.io import save as save
    from onnxqat.insertion import insert as insert
    from onnxqat.search.latency.choice import faster as faster
    from onnxqat.search.layers.measure import layers as layers
    from onnxqat.search.mixed.search import mixed_precision as mixed_precision
    from onnxqat.search.reconstruction.reconstruct import reconstruct as reconstruct
    from onnxqat.search.sensitivity.trials import sensitivity as sensitivity
    from onnxqat.training.execution import Execution as Execution
    from onnxqat.training.gradients import gradients as gradients
    from onnxqat.training.optimize.optimizers import SGD as SGD
    from onnxqat.training.optimize.optimizers import AdamW as AdamW
    from onnxqat.training.optimize.schedules import Constant as Constant
    from onnxqat.training.optimize.schedules import Cosine as Cosine
    from onnxqat.training.optimize.schedules import StepDecay as StepDecay
    from onnxqat.training.portable.export import export_training as export_training
    from onnxqat.training.trainer import Trainer as Trainer
    from onnxqat.verification.report import Report as Report
    from onnxqat.verification.run import evaluate as evaluate
    from onnxqat.verification.run import verify as verify
else:

    def __getattr__(name: str) -> Any:
        """A public name, from its home."""
        if name not in _HOMES:
            raise AttributeError(f"module 'onnxqat' has no attribute {name!r}")
        home = import_module(_HOMES[name])
        found = home if home.__name__ == f"onnxqat.{name}" else getattr(home, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
