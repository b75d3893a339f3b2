"""Quantization-aware training on the ONNX graph itself."""

from onnxqat.search_path import put_current_folder_last

put_current_folder_last()

# isort: split
from onnxqat import callbacks
from onnxqat.config import Config, Override, Select
from onnxqat.errors import InputError, MissingExtraError, OnnxqatError, TrainingError, UnsupportedModelError
from onnxqat.fold import fold
from onnxqat.graph.io import save
from onnxqat.insert import insert
from onnxqat.train.evaluate_gradients import gradients
from onnxqat.train.optimizers import SGD, AdamW
from onnxqat.train.schedules import Constant, Cosine, StepDecay
from onnxqat.train.trainer import Trainer
from onnxqat.verify.report import Report
from onnxqat.verify.run import evaluate, verify

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
