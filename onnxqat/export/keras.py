"""Exports a Keras model as a float ONNX model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.errors import InputError, MissingExtraError, UnsupportedModelError
from onnxqat.export.finish import check_request, compare, finish, tidy
from onnxqat.export.names import rename
from onnxqat.export.quiet import no_printing, quiet, reason

# Otherwise TensorFlow writes a page about its kernels on being imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
try:
    with no_printing(2):
        import keras
        import tensorflow as tf

        from onnxqat.export.recurrent import as_nodes
        from onnxqat.export.tensorflow_graph import converted
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed; run `pip install 'onnxqat[keras]'`") from error

#: tf2onnx 1.17 stops here.
NEWEST_OPSET = 18
#: Size of a free axis, other than the batch, in the comparison with Keras.
FREE_AXIS_SIZE = 32


@dataclass(frozen=True)
class Source:
    """Source of an export: a Keras model or a SavedModel.

    Attributes:
        name: for messages.
        inputs: name, shape and dtype of each input.
        outputs: names of the outputs.
        call: the forward pass in inference mode, from tensors in the order of `inputs` to tensors by output name.
        layers: names of the layers, nested ones included; empty where they are not known.
    """

    name: str
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[str, ...]
    call: Callable[[Sequence[tf.Tensor]], Mapping[str, tf.Tensor]]
    layers: frozenset[str] = frozenset()


def export(model: keras.Model | str | Path, path: str | Path | None = None, *, opset: int = 17) -> onnx.ModelProto:
    """Exports a model as it computes in inference mode, and checks the result against it.

    Inputs and outputs keep their names and Keras's layout (channel last); their first axis is the batch, of any size.

    Args:
        model: a Sequential or Functional model, the path of a `.keras` file, or of a SavedModel folder.
        path: where to write the model; nothing is written if None.
        opset: version of the default operator set, 13 to 18.

    Returns:
        The model, equal to Keras's within 1e-4 at two batch sizes.

    Example:
        ```python
        from onnxqat.export.keras import export

        export("model.keras", "model.onnx")
        ```

    Raises:
        InputError: there is no such file or folder, it cannot be loaded, or the opset or the path is not possible.
        UnsupportedModelError: the model cannot be written as ONNX.
    """
    check_request(path, opset, NEWEST_OPSET)
    source = _source(model)
    graph_model = tidy(_convert(source, opset))
    rename(graph_model.graph, source.name, source.layers)

    def run(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = source.call([tf.constant(arrays[spec.name]) for spec in source.inputs])
        return {name: value.numpy() for name, value in results.items()}

    for feeds in (_sample(source, rows) for rows in (2, 3)):
        compare(graph_model, feeds, run(feeds), source.name)
    return finish(graph_model, path)


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


def _source(model: keras.Model | str | Path) -> Source:
    if not isinstance(model, (str, os.PathLike)):
        return _from_model(model)
    path = Path(model)
    if (path / "saved_model.pb").is_file():
        return _from_saved_model(path)
    if path.is_dir():
        raise InputError(f"{path}: the folder holds no saved_model.pb; write it with model.export(folder)")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; check the path")
    try:
        loaded = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise InputError(
            f"{path}: Keras cannot load it ({reason(error)}); give a file that model.save wrote, "
            "or for custom layers the model itself"
        ) from error
    return _from_model(loaded)


def _from_model(model: keras.Model) -> Source:
    if not isinstance(model, keras.Model):
        raise InputError(
            f"model: is a {type(model).__name__}; give a Keras model, a .keras file or a SavedModel folder"
        )
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"{model.name}: Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    if isinstance(model, keras.Sequential) and not model.built:
        raise InputError(f"{model.name}: has no input shape yet; begin it with keras.Input(shape)")
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"{model.name}: is a subclassed model ({type(model).__name__}), whose inputs are not known; "
            "build it with keras.Model(inputs, outputs), or write it with model.export(folder) and give the folder"
        )
    specs = tuple(tf.TensorSpec(value.shape, value.dtype, name=value.name) for value in model.inputs)
    names = (model.layers[-1].name,) if isinstance(model, keras.Sequential) else _unique(model.output_names)

    def call(inputs: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        packed = inputs[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, inputs)
        results = model(packed, training=False)
        return dict(zip(names, keras.tree.flatten(results), strict=True))

    return _checked(Source(model.name, specs, names, call, frozenset(_layer_names(model))))


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Numbers repeated names: all outputs of a wrapped model have that model's name."""
    found: list[str] = []
    for name in names:
        number, free = 0, name
        while free in found or (number and free in names):
            number += 1
            free = f"{name}_{number}"
        found.append(free)
    return tuple(found)


def _from_saved_model(folder: Path) -> Source:
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        raise InputError(f"{folder}: TensorFlow cannot load it ({reason(error)}); save the model again") from error
    if "serving_default" not in loaded.signatures:
        raise InputError(
            f"{folder}: has no signature 'serving_default', only {sorted(loaded.signatures)}; write it with model.export"
        )
    signature = loaded.signatures["serving_default"]
    specs = tuple(
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in signature.structured_input_signature[1].items()
    )

    def call(inputs: Sequence[tf.Tensor]) -> Mapping[str, tf.Tensor]:
        # The signature alone would not keep the variables alive.
        results: Mapping[str, tf.Tensor] = loaded.signatures["serving_default"](
            **{spec.name: value for spec, value in zip(specs, inputs, strict=True)}
        )
        return results

    return _checked(Source(folder.name, specs, tuple(signature.structured_outputs), call))


def _checked(source: Source) -> Source:
    for spec in source.inputs:
        if spec.shape.rank is None or spec.shape.rank == 0 or spec.shape[0] is not None:
            raise UnsupportedModelError(
                f"{source.name}: input {spec.name!r} has shape {spec.shape}, so no free batch axis; "
                "build the model with keras.Input(shape) without a batch size"
            )
        if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
            raise UnsupportedModelError(
                f"{source.name}: input {spec.name!r} is of type {spec.dtype.name}; leave preprocessing of it out of the model"
            )
    return source


def _convert(source: Source, opset: int) -> onnx.ModelProto:
    with quiet(), no_printing(2), as_nodes():
        try:
            return converted(source.call, source.inputs, source.outputs, opset)
        except Exception as error:
            raise UnsupportedModelError(
                f"{source.name}: tf2onnx cannot export it ({reason(error)}); replace the layer that it names"
            ) from error


def _sample(source: Source, rows: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(rows)
    sample = {}
    for spec in source.inputs:
        shape = [rows, *(FREE_AXIS_SIZE if size is None else size for size in spec.shape[1:])]
        # 0 and 1 are valid whatever integers mean: flags, tokens, pixels.
        drawn = random.standard_normal(shape) if spec.dtype.is_floating else random.integers(0, 2, shape)
        sample[spec.name] = drawn.astype(spec.dtype.as_numpy_dtype)
    return sample


def _layer_names(model: keras.Model) -> list[str]:
    nested = [name for layer in model.layers if hasattr(layer, "layers") for name in _layer_names(layer)]
    return [layer.name for layer in model.layers] + nested
