"""A Q/DQ model as a PyTorch module, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from google.protobuf.message import DecodeError

from onnxqat.config import Config
from onnxqat.data.sources import Batches, Source, Transform
from onnxqat.errors import InputError
from onnxqat.export.torch import export
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.torch.module import QdqModule
from onnxqat.training.execution import Execution, Options
from onnxqat.training.training_graph.build import load_qdq

if TYPE_CHECKING:
    from typing_extensions import Unpack


def as_module(qdq: io.ModelLike | torch.Tensor, **execution: Unpack[Options]) -> QdqModule:
    """A module whose parameters are the model's weights, biases and scales, for any loss, optimizer and loop of PyTorch's.

    It takes tensors on any device; results are where the first input is. With `provider="cuda"` the graph runs on what is on the
    GPU in place; with any other provider, it is copied to the CPU, and results are copied back.

    Args:
        qdq: the model, as `onnxqat.insert` or another quantizer wrote it; or what `structure()` of a module gave, out of a
            checkpoint, so that neither the float model nor calibration data is needed again.
        execution: `threads`, `layout`, `engine`, `memory`, `provider`: see `onnxqat.Execution`.

    Example:
        ```python
        module = onnxqat.torch.as_module(qdq)
        optimizer = torch.optim.AdamW(module.groups(lr=1e-5))
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        ```

    Raises:
        InputError: the model has no quantizers, or nothing to train.
    """
    model = _from_structure(qdq) if isinstance(qdq, torch.Tensor) else qdq
    return QdqModule(load_qdq(model), Execution(**execution))


def quantize(
    module: torch.nn.Module,
    sample: torch.Tensor | tuple[torch.Tensor, ...],
    loader: str | Path | Source | Batches,
    config: Config | None = None,
    *,
    transform: Transform | None = None,
    **execution: Unpack[Options],
) -> QdqModule:
    """Exports a float module, inserts quantizers, and returns the module to train: what NNCF's `create_compressed_model` did.

    Args:
        module: the trained float module; it is not changed.
        sample: one input, or a tuple of the positional inputs of `forward`; the batch may have any size.
        loader: calibration data: inputs, labels behind them allowed; a few hundred samples usually suffice.
        config: settings; None: `Config()`.
        transform: turns an item of the loader into a batch.
        execution: as of `as_module`.

    Example:
        ```python
        quantized = onnxqat.torch.quantize(network, torch.zeros(1, 3, 224, 224), loader, onnxqat.Config(target="openvino"))
        ```

    Raises:
        InputError: sample, data or configuration is wrong; the message says which and what to do.
        UnsupportedModelError: the module cannot be written as ONNX, or has nothing to quantize.
    """
    return as_module(insert(export(module, sample), loader, config, transform=transform), **execution)


def to_model(module: torch.nn.Module) -> onnx.ModelProto:
    """The Q/DQ model with the parameters that the module has now: what `fold` and `verify` take.

    Args:
        module: what `as_module` returned, or a DistributedDataParallel around it.

    Example:
        ```python
        deployed = onnxqat.fold(onnxqat.torch.to_model(module))
        ```

    Raises:
        InputError: it is another module, or a parameter is not finite.
    """
    inner = module if isinstance(module, QdqModule) else getattr(module, "module", module)
    if not isinstance(inner, QdqModule):
        raise InputError(f"module: is a {type(module).__name__}; give the module that onnxqat.torch.as_module returned")
    model: onnx.ModelProto = inner._model()
    return model


def _from_structure(structure: torch.Tensor) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        if structure.dtype == torch.uint8 and structure.ndim == 1:
            model.ParseFromString(structure.cpu().numpy().tobytes())
    except DecodeError:
        model.Clear()
    if not model.HasField("graph"):
        raise InputError(
            "model: is a tensor, but not one that structure() of a module gave; load that from the checkpoint"
        )
    return model
