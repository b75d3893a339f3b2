"""Exports a Keras model as a float ONNX model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from onnxqat.data import sources
from onnxqat.errors import InputError, MissingExtraError, UnsupportedModelError
from onnxqat.export.finish import check_request, compare, finish, tidy
from onnxqat.export.names import layer_path, rename
from onnxqat.export.quiet import no_printing, quiet, reason

# Otherwise TensorFlow writes a page about its kernels on being imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
try:
    with no_printing(2):
        import keras
        import tensorflow as tf

        from onnxqat.export.keras_models import Source, from_model, from_saved_model, single_precision
        from onnxqat.export.recurrent import as_nodes
        from onnxqat.export.tensorflow_graph import converted
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed; run `pip install 'onnxqat[keras]'`") from error

#: tf2onnx 1.17 stops here.
NEWEST_OPSET = 18


def export(
    model: keras.Model | str | Path,
    path: str | Path | None = None,
    *,
    opset: int = 17,
    dataset: tf.data.Dataset | Any = None,
) -> onnx.ModelProto:
    """Exports a model as it computes in inference mode, and checks the result against it.

    Inputs and outputs keep their names and Keras's layout (channel last); their first axis is the batch, of any size.
    Layers of mixed or half precision are exported as float32.

    Args:
        model: a Sequential or Functional model, the path of a `.keras` file, or of a SavedModel folder; with a dataset,
            any model.
        path: where to write the model; nothing is written if None.
        opset: version of the default operator set, 13 to 18.
        dataset: the tf.data.Dataset that the model is trained on, in batches, or its `element_spec`: it says what the
            inputs of a subclassed model are. They are named as the keys of a dict, otherwise `input`, or `input_0, …`;
            outputs `output`, or `output_0, …`, or by their keys.

    Returns:
        The model, equal to Keras's within 1e-4 at two batch sizes.

    Example:
        ```python
        from onnxqat.export.keras import export

        export("model.keras", "model.onnx")
        ```

    Raises:
        InputError: there is no such file or folder, it cannot be loaded, the dataset does not fit, or the opset or the path
            is not possible.
        UnsupportedModelError: the model cannot be written as ONNX.
    """
    check_request(path, opset, NEWEST_OPSET)
    model = _loaded(model)
    if isinstance(model, Path):
        return _exported(from_saved_model(model), path, opset)
    with single_precision(model):
        return _exported(from_model(model, dataset), path, opset)


def load(name: str) -> keras.Model | Path:
    """Loads what the command line names: a file or folder, or a model that `package.module:function` makes.

    Raises:
        InputError: there is no such function, or it does not return a model.
    """
    if ":" not in name or Path(name).exists():
        return Path(name)
    model = sources.call(name)
    if not isinstance(model, keras.Model):
        raise InputError(f"{name}: gives a {type(model).__name__}, not a Keras model; name a function that makes one")
    return model


def _exported(source: Source, path: str | Path | None, opset: int) -> onnx.ModelProto:
    with quiet(), no_printing(2), as_nodes():
        try:
            proto = converted(source.call, source.inputs, source.outputs, opset)
        except Exception as error:
            raise UnsupportedModelError(
                f"{source.name}: tf2onnx cannot export it ({reason(error)}); replace the layer that it names"
            ) from error
    model = tidy(proto, lambda name: layer_path(name, source.name, source.layers))
    rename(model.graph, source.name, source.layers)
    for feeds in (source.sample(2), source.sample(3)):
        compare(model, feeds, source.run(feeds), source.name)
    return finish(model, path)


def _loaded(model: keras.Model | str | Path) -> keras.Model | Path:
    """The model itself or of a file, or the folder of a SavedModel."""
    if isinstance(model, keras.Model):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(
            f"model: is a {type(model).__name__}; give a Keras model, a .keras file or a SavedModel folder"
        )
    path = Path(model)
    if (path / "saved_model.pb").is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: the folder holds no saved_model.pb; write it with model.export(folder)")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; check the path")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise InputError(
            f"{path}: Keras cannot load it ({reason(error)}); give a file that model.save wrote, "
            "or for custom layers the model itself"
        ) from error
