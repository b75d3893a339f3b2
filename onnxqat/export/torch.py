"""Exports a PyTorch module as a float ONNX model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast, get_args

import onnx
import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.errors import InputError, MissingExtraError, UnsupportedModelError
from onnxqat.export.finish import check_request, compare, finish
from onnxqat.graph.structure import DROPOUT, OUTPUTS

try:
    import torch
    from torch.nn.modules.dropout import _DropoutNd

    from onnxqat.export import dynamo, torchscript
    from onnxqat.export.forward import Forward, check_sample, evaluation, forward, single_precision
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch is not installed; run `pip install 'onnxqat[torch]'`") from error

Exporter = Literal["auto", "torchscript", "dynamo"]

#: Integer types that the command line offers for inputs.
_INTEGERS = {"int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8}
#: The TorchScript exporter stops here.
NEWEST_OPSET = 20


def export(
    module: torch.nn.Module,
    sample: torch.Tensor | tuple[torch.Tensor, ...],
    path: str | Path | None = None,
    *,
    opset: int = 17,
    exporter: Exporter = "auto",
) -> onnx.ModelProto:
    """Exports a module as it computes in evaluation mode, and checks the result against it.

    The first axis of every input and output is the batch, of any size. Inputs are named as the arguments of `forward`,
    outputs `output`, `output_0, output_1, …`, or by the keys of a dict; parameters keep their names, and nodes are named
    by the path of their module. A module of float16 or bfloat16 weights is exported as float32.

    Args:
        module: what to export; left as it was.
        sample: one input, or a tuple of the positional inputs of `forward`; the batch may have any size.
        path: where to write the model; nothing is written if None.
        opset: version of the default operator set, 13 to 20; the newer exporter writes 18 for operators that have no older form.
        exporter: which of PyTorch's exporters: `torchscript`, the newer `dynamo`, or `auto`, the first of the two whose
            model answers as the module does.

    Returns:
        The model, equal to the module within 1e-4 at the sample's batch size and at another.

    Example:
        ```python
        from onnxqat.export.torch import export

        export(net, torch.zeros(1, 3, 224, 224), "model.onnx")
        ```

    Raises:
        InputError: the sample does not fit the module, the opset, the path or the exporter is not possible.
        UnsupportedModelError: the module cannot be written as ONNX, or not for every batch size.
    """
    check_request(path, opset, NEWEST_OPSET)
    chosen(exporter)
    inputs = (sample,) if isinstance(sample, torch.Tensor) else tuple(sample)
    check_sample(inputs)
    with evaluation(module):
        module, inputs = single_precision(module, inputs)
        asked = forward(module, inputs)
        passes = [asked, asked.with_more_rows()]
        model = _answering(passes, opset, exporter)
    if asked.structure is not None:
        model.metadata_props[OUTPUTS] = asked.structure
    dropout = [name for name, part in module.named_modules() if isinstance(part, _DropoutNd) and part.p]
    if dropout:
        model.metadata_props[DROPOUT] = json.dumps(dropout)
    return finish(model, path)


def chosen(exporter: str) -> Exporter:
    """Returns the exporter of that name.

    Raises:
        InputError: there is none.
    """
    for known in get_args(Exporter):
        if exporter == known:
            return cast("Exporter", known)
    raise InputError(f"exporter {exporter!r}: is none of PyTorch's; use {', '.join(get_args(Exporter))}")


def _answering(passes: list[Forward], opset: int, exporter: Exporter) -> ir.Model:
    """The model of the first exporter whose answers are the module's; the first one's refusal where there is none."""
    refusal: UnsupportedModelError | None = None
    for name, write in _WRITERS.items():
        if exporter not in ("auto", name):
            continue
        try:
            model = write(passes[0], opset)
            for one in passes:
                compare(model, one.arrays(), one.outputs, one.kind)
        except torchscript.DecidesByValueError:
            raise
        except UnsupportedModelError as error:
            refusal = refusal or error
        else:
            return model
    assert refusal is not None
    raise refusal


_WRITERS: dict[str, Callable[[Forward, int], ir.Model]] = {"torchscript": torchscript.write, "dynamo": dynamo.write}


def load_factory(name: str) -> torch.nn.Module:
    """The module that a function makes, the function named as `package.module:function`.

    Raises:
        InputError: there is no such function, or it does not return a module.
    """
    named = sources.resolve(name)
    module = named if isinstance(named, torch.nn.Module) else sources.call(name)
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{name}: gives a {type(module).__name__}, not a torch.nn.Module; name a function that makes one"
        )
    return module


def random_sample(text: str) -> torch.Tensor:
    """An input of the shape that the text says, `1,3,224,224`, the same on every call; of integers for `int64:1,16`.

    Integers are 0 or 1: valid whatever they mean, tokens, flags, pixels.

    Raises:
        InputError: it says no shape, or an unknown type.
    """
    kind, _, sizes = text.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise InputError(f"--input {text!r}: is not a shape; write it as 1,3,224,224") from None
    if any(size < 1 for size in shape):
        raise InputError(f"--input {text!r}: holds a size below 1; write it as 1,3,224,224")
    random = torch.Generator().manual_seed(0)
    if kind in ("", "float32"):
        return torch.randn(shape, generator=random)
    if kind not in _INTEGERS:
        raise InputError(f"--input {text!r}: {kind!r} is no type here; use float32, {', '.join(_INTEGERS)}")
    return torch.randint(0, 2, shape, generator=random, dtype=_INTEGERS[kind])
