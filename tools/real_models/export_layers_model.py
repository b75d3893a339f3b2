"""Converts a Keras "layers-model" (topology in JSON, weights in one binary file) to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from onnxqat.export.keras import export as export_keras

# onnxqat.export.keras comes first: it quietens TensorFlow.
import keras  # isort: skip


def export(source: Path, target: Path) -> None:
    """Exports a Functional model of layers with one output each; `source` is its model.json."""
    description = json.loads(source.read_text(encoding="utf-8"))
    config = description["modelTopology"]["model_config"]["config"]
    model = _build(config)
    for layer, arrays in _weights(description["weightsManifest"], source.parent).items():
        model.get_layer(layer).set_weights(arrays)
    export_keras(model, target)


def _build(config: dict[str, Any]) -> keras.Model:
    """Keras 3 does not read this form itself, but it does read the layers' own settings."""
    values: dict[str, Any] = {}
    for layer in config["layers"]:
        settings = {
            k: v for k, v in layer["config"].items() if not k.endswith(("initializer", "regularizer", "constraint"))
        }
        if layer["class_name"] == "InputLayer":
            values[layer["name"]] = keras.Input(settings["batch_input_shape"][1:], name=layer["name"])
            continue
        sources = [values[name] for name, *_ in layer["inbound_nodes"][0]]
        made = getattr(keras.layers, layer["class_name"]).from_config(settings)
        values[layer["name"]] = made(sources if len(sources) > 1 else sources[0])
    ends = [[values[name] for name, *_ in config[key]] for key in ("input_layers", "output_layers")]
    return keras.Model(*ends, name=config["name"])


def _weights(manifest: list[dict[str, Any]], folder: Path) -> dict[str, list[np.ndarray]]:
    """Arrays of each layer, in the order that the layer has them."""
    found: dict[str, list[np.ndarray]] = {}
    for group in manifest:
        data, offset = b"".join((folder / path).read_bytes() for path in group["paths"]), 0
        for entry in group["weights"]:
            size = int(np.prod(entry["shape"]))
            array = np.frombuffer(data, entry["dtype"], size, offset).reshape(entry["shape"])
            found.setdefault(entry["name"].rpartition("/")[0], []).append(array)
            offset += array.nbytes
    return found
