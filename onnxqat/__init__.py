"""Quantization-aware training on the ONNX graph itself."""

from onnxqat.search_path import put_current_folder_last

put_current_folder_last()

__version__ = "0.1.0"

# isort: split
from onnxqat import callbacks
from onnxqat.config import Config, Override, Select
from onnxqat.errors import InputError, MissingExtraError, OnnxqatError, TrainingError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.graph.io import save
from onnxqat.insertion import insert
from onnxqat.training.gradients import gradients
from onnxqat.training.optimize.optimizers import SGD, AdamW
from onnxqat.training.optimize.schedules import Constant, Cosine, StepDecay
from onnxqat.training.trainer import Trainer
from onnxqat.verification.report import Report
from onnxqat.verification.run import evaluate, verify

__all__ = [
    "SGD",
    "AdamW",
    "Config",
    "Constant",
    "Cosine",
    "InputError",
    "MissingExtraError",
    "OnnxqatError",
    "Override",
    "Report",
    "Select",
    "StepDecay",
    "Trainer",
    "TrainingError",
    "UnsupportedModelError",
    "callbacks",
    "evaluate",
    "fold",
    "gradients",
    "insert",
    "save",
    "verify",
]
