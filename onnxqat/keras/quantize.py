"""From a float Keras model to one that trains quantized, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.export.keras import export
from onnxqat.insertion import insert
from onnxqat.keras.model import QdqModel, as_model
from onnxqat.training.execution import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def quantize(
    model: keras.Model,
    dataset: Iterable[Any],
    config: Config | None = None,
    *,
    opset: int = 17,
    **execution: Unpack[Options],
) -> QdqModel:
    """Exports a Keras model, inserts quantizers with ranges from the dataset, and wraps the result for `fit`.

    Args:
        model: the float model.
        dataset: what `fit` takes: a `tf.data.Dataset`, a `keras.utils.PyDataset`, or batches; labels are not read. A few hundred
            samples usually suffice: `dataset.take(16)`.
        config: settings; None: `Config()`.
        opset: version of ONNX's default operator set, 13 to 18.
        execution: as of `as_model`.

    Raises:
        InputError: the dataset's elements do not fit the model's inputs.
        UnsupportedModelError: the model cannot be exported, or has nothing to quantize.

    Example:
        ```python
        quantized = onnxqat.keras.quantize(model, dataset.take(16))
        quantized.compile(keras.optimizers.Adam(1e-5), loss="mse")
        quantized.fit(dataset, epochs=1)
        deployed = quantized.fold()
        ```
    """
    # A subclassed model's inputs are known from the dataset alone.
    known = bool(getattr(model, "inputs", None)) or not hasattr(dataset, "element_spec")
    exported = export(model, opset=opset, dataset=None if known else dataset)
    names = [value.name for value in exported.graph.input]

    def inputs(element: Any) -> dict[str, Any]:
        given, _, _ = keras.utils.unpack_x_y_sample_weight(element)
        if isinstance(given, Mapping):
            return dict(given)
        arrays = keras.tree.flatten(given)
        if len(arrays) != len(names):
            raise InputError(f"dataset: gives {len(arrays)} inputs, the model takes {', '.join(names)}; give these")
        return dict(zip(names, arrays, strict=True))

    batches = _Items(dataset) if isinstance(dataset, keras.utils.PyDataset) else dataset
    return as_model(insert(exported, batches, config, transform=inputs), **execution)


class _Items:
    """A PyDataset's batches, which it gives by number."""

    def __init__(self, dataset: keras.utils.PyDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Any:
        return (self._dataset[number] for number in range(self._dataset.num_batches))
