"""Keras models, and SavedModels, as functions of named tensors that can be traced."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.names import named_outputs
from onnxqat.export.quiet import reason

log = logging.getLogger(__name__)

#: Size of a free axis, other than the batch, in the comparison with Keras.
FREE_AXIS_SIZE = 32
_HALF = ("float16", "bfloat16")


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

    def sample(self, rows: int) -> dict[str, NDArray[Any]]:
        """Inputs by name, the same for the same number of rows."""
        random = np.random.default_rng(rows)
        arrays = {}
        for spec in self.inputs:
            shape = [rows, *(FREE_AXIS_SIZE if size is None else size for size in spec.shape[1:])]
            # 0 and 1 are valid whatever integers mean: flags, tokens, pixels.
            drawn = random.standard_normal(shape) if spec.dtype.is_floating else random.integers(0, 2, shape)
            arrays[spec.name] = drawn.astype(spec.dtype.as_numpy_dtype)
        return arrays

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for these inputs, both by name."""
        results = self.call([tf.constant(arrays[spec.name]) for spec in self.inputs])
        return {name: results[name].numpy() for name in self.outputs}


def from_model(model: keras.Model, dataset: Any = None) -> Source:
    """Reads a model.

    Args:
        model: a built Sequential or Functional model, or, with a dataset, any model.
        dataset: a tf.data.Dataset that the model is trained on, or its `element_spec`; None if the model knows its inputs.

    Raises:
        InputError: it has no inputs yet, or the dataset's elements do not fit it.
        UnsupportedModelError: its inputs are not known, have no free batch axis or no numbers.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"{model.name}: Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    sequential = isinstance(model, keras.Sequential)
    if dataset is None and sequential and not model.built:
        raise InputError(f"{model.name}: has no input shape yet; begin it with keras.Input(shape)")
    known = bool(getattr(model, "inputs", None))
    if not known and dataset is None:
        raise UnsupportedModelError(
            f"{model.name}: is a subclassed model ({type(model).__name__}), whose inputs are not known; "
            "give the dataset that it is trained on as well, or write it with model.export(folder) and give the folder"
        )
    elements = None if dataset is None else _inputs_of(model.name, dataset)
    if not known:
        return _checked(_subclassed(model, elements))
    specs = tuple(tf.TensorSpec(value.shape, _single(value.dtype), name=value.name) for value in model.inputs)
    if elements is not None:
        _check_fit(model.name, specs, keras.tree.flatten(elements))
    names = (model.layers[-1].name,) if sequential else _unique(model.output_names)

    def call(inputs: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        packed = inputs[0] if sequential else keras.tree.pack_sequence_as(model.input, inputs)
        return dict(zip(names, keras.tree.flatten(model(packed, training=False)), strict=True))

    return _checked(Source(model.name, specs, names, call, frozenset(_layer_names(model))))


def from_saved_model(folder: Path) -> Source:
    """Reads the signature `serving_default` of a SavedModel.

    Raises:
        InputError: it cannot be loaded, or has no such signature.
        UnsupportedModelError: its inputs have no free batch axis or no numbers.
    """
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


@contextlib.contextmanager
def single_precision(model: keras.Model) -> Iterator[None]:
    """Lets a model of half precision hold float32 and compute in it, as long as it lasts."""
    layers = [layer for layer in model._flatten_layers() if layer.compute_dtype in _HALF]
    policies = [layer.dtype_policy for layer in layers]
    # Keras has no way to change a variable's type; some of its layers read variables as they are, whatever the policy.
    variables = [variable for variable in model.variables if variable.dtype in _HALF]
    values = [(variable._value, variable._dtype) for variable in variables]
    if policies:
        names = " and ".join(sorted({policy.name for policy in policies}))
        log.warning("%s: exported as float32; its layers are %s", model.name, names)
    try:
        for layer in layers:
            layer.dtype_policy = "float32"
        for variable, (value, _) in zip(variables, values, strict=True):
            variable._value, variable._dtype = tf.Variable(tf.cast(value, tf.float32)), "float32"
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy
        for variable, (value, dtype) in zip(variables, values, strict=True):
            variable._value, variable._dtype = value, dtype


def _subclassed(model: keras.Model, elements: Any) -> Source:
    """Runs the model once, which makes its variables and shows its outputs."""
    flat = keras.tree.flatten(elements)
    names = list(elements) if isinstance(elements, Mapping) else [f"input_{index}" for index in range(len(flat))]
    if len(names) != len(flat):
        raise InputError(f"{model.name}: its dataset's inputs are nested; give a tensor, a tuple or a dict of tensors")
    if isinstance(elements, Mapping):
        flat = list(elements.values())
    names = ["input"] if isinstance(elements, tf.TensorSpec) else names
    specs = tuple(
        tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name=name) for name, spec in zip(names, flat, strict=True)
    )

    def forward(inputs: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        packed: Any = dict(zip(names, inputs, strict=True)) if isinstance(elements, Mapping) else inputs[0]
        if isinstance(elements, (tuple, list)):
            packed = type(elements)(inputs)
        result = named_outputs(model(packed, training=False))
        # An output may not have the name of an input.
        free = _unique([*names, *result])[len(names) :]
        return dict(zip(free, result.values(), strict=True))

    source = Source(model.name, specs, (), forward)
    try:
        outputs = forward([tf.constant(array) for array in source.sample(2).values()])
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {spec.shape} {spec.dtype.name}" for spec in specs)
        raise InputError(
            f"{model.name}: does not take its dataset's elements, {shapes} ({reason(error)}); "
            "give the dataset that it is trained on, in batches"
        ) from error
    strange = [type(value).__name__ for value in outputs.values() if not isinstance(value, tf.Tensor)]
    if strange:
        raise UnsupportedModelError(
            f"{model.name}: returns a {strange[0]} among its outputs; return a tensor, a tuple or a dict of tensors"
        )
    return replace(source, outputs=tuple(outputs), layers=frozenset(_layer_names(model)))


def _inputs_of(name: str, dataset: Any) -> Any:
    """Inputs among a dataset's elements, which are inputs alone, or inputs and labels, or those and weights, as in `fit`."""
    spec = getattr(dataset, "element_spec", dataset)
    inputs = spec[0] if isinstance(spec, tuple) and spec else spec
    for leaf in keras.tree.flatten(inputs):
        if not isinstance(leaf, tf.TensorSpec):
            raise InputError(
                f"{name}: its dataset's elements hold a {type(leaf).__name__}; give a tf.data.Dataset of tensors"
            )
        if not leaf.shape.rank:
            raise InputError(f"{name}: its dataset's elements have shape {leaf.shape}; give it in batches")
    return inputs


def _check_fit(name: str, wanted: Sequence[tf.TensorSpec], found: Sequence[tf.TensorSpec]) -> None:
    fits = len(wanted) == len(found) and all(
        w.shape[1:].is_compatible_with(f.shape[1:]) and w.shape.rank == f.shape.rank
        for w, f in zip(wanted, found, strict=False)
    )
    if not fits:
        theirs, ours = (", ".join(str(spec.shape) for spec in specs) for specs in (found, wanted))
        raise InputError(
            f"{name}: its dataset's elements have the shapes {theirs}, the model takes {ours}; "
            "give the dataset that it is trained on, in batches"
        )


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


def _single(dtype: str) -> str:
    return "float32" if dtype in _HALF else dtype


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


def _layer_names(model: keras.Model) -> list[str]:
    nested = [name for layer in model.layers if hasattr(layer, "layers") for name in _layer_names(layer)]
    return [layer.name for layer in model.layers] + nested
