"""Training with Keras's own `fit`: a Q/DQ model as a `keras.Model`, run forward and backward by its ONNX graph."""

import os

from onnxqat.errors import InputError, MissingExtraError
from onnxqat.export.quiet import no_printing

# Otherwise TensorFlow writes a page about its kernels on being imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
try:
    with no_printing(2):
        import keras
        import tensorflow as tf  # noqa: F401  (the backend, loaded quietly)
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed; run `pip install 'onnxqat[keras]'`") from error
if keras.backend.backend() != "tensorflow":
    raise InputError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")

from onnxqat.keras.callbacks import callbacks
from onnxqat.keras.model import QdqModel, as_model, to_model
from onnxqat.keras.quantize import quantize

__all__ = ["QdqModel", "as_model", "callbacks", "quantize", "to_model"]
