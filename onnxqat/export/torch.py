"""Exports a PyTorch module as a float ONNX model."""

from __future__ import annotations

import contextlib
import inspect
import io as memory
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.errors import InputError, MissingExtraError, UnsupportedModelError
from onnxqat.export.finish import check_request, finish, tidy
from onnxqat.export.quiet import no_printing, quiet, reason

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch is not installed; run `pip install 'onnxqat[torch]'`") from error

Outputs = dict[str, NDArray[Any]]

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
) -> onnx.ModelProto:
    """Exports a module as it computes in evaluation mode, and checks the result against it.

    The first axis of every input and output is the batch, of any size. Inputs are named as the arguments of `forward`,
    outputs `output`, `output_0, output_1, …`, or by the keys of a dict; parameters keep their names.

    Args:
        module: what to export; left as it was.
        sample: one input, or a tuple of the positional inputs of `forward`; the batch may have any size.
        path: where to write the model; nothing is written if None.
        opset: version of the default operator set, 13 to 20.

    Returns:
        The model, equal to the module within 1e-4 at the sample's batch size and at another.

    Example:
        ```python
        from onnxqat.export.torch import export

        export(net, torch.zeros(1, 3, 224, 224), "model.onnx")
        ```

    Raises:
        InputError: the sample does not fit the module, the opset or the path is not possible.
        UnsupportedModelError: the module cannot be written as ONNX, or not for every batch size.
    """
    check_request(path, opset, NEWEST_OPSET)
    inputs = (sample,) if isinstance(sample, torch.Tensor) else tuple(sample)
    _check_sample(inputs)
    kind = type(module).__name__
    with _evaluation(module):
        expected = _run(module, inputs)
        names = _input_names(module, len(inputs))
        proto = _trace(module, inputs, names, expected, opset)
        feeds = [_arrays(names, inputs), _arrays(names, _one_more_row(inputs))]
        device = inputs[0].device

        def run(arrays: dict[str, NDArray[Any]]) -> Outputs:
            tensors = tuple(torch.from_numpy(arrays[name]).to(device) for name in names)
            try:
                return _run(module, tensors)
            except InputError as error:
                why = reason(error.__cause__ or error)
                raise UnsupportedModelError(
                    f"{kind}: forward takes {len(inputs[0])} rows but not {len(tensors[0])} ({why}); "
                    "take the batch size from the input's shape wherever the code fixes it"
                ) from error

        return finish(tidy(proto), path, feeds, run, kind)


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


def _trace(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], expected: Outputs, opset: int
) -> onnx.ModelProto:
    """Runs the TorchScript exporter.

    PyTorch's newer exporter (`dynamo=True`, torch 2.13) cannot write opset 17 and turns global average pooling into
    ReduceMean, for which runtimes have no integer kernel. PRESERVE keeps BatchNormalization a node of its own with its
    parameters' names, and constants unfolded: this package folds them where it can keep the names.
    """
    batched = [name for name, value in expected.items() if value.ndim and len(value) == len(inputs[0])]
    stream = memory.BytesIO()
    with warnings.catch_warnings(record=True) as caught, no_printing(), _no_fused_attention():
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                module,
                inputs,
                stream,
                input_names=names,
                output_names=list(expected),
                dynamic_axes={name: {0: "batch"} for name in [*names, *batched]},
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                dynamo=False,
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(module).__name__}: PyTorch cannot export it ({reason(error)}); "
                "write that part with operations that ONNX has"
            ) from error
    decisions = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    if decisions:
        _check_control_flow(module, inputs, decisions[0])
    return onnx.load_from_string(stream.getvalue())


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Keeps nn.TransformerEncoderLayer to its plain operations; its fused one in evaluation mode has no ONNX form."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _check_control_flow(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], warning: warnings.WarningMessage
) -> None:
    """Refuses a module whose Python code decides by the values of tensors.

    Tracing follows one side of an `if` and only warns, for decisions by values as for harmless ones by shapes;
    torch.export tells them apart.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    batch = ({0: torch.export.Dim.DYNAMIC},) * len(inputs)
    try:
        with quiet(), contextlib.redirect_stderr(memory.StringIO()):
            torch.export.export(module, inputs, dynamic_shapes=batch, strict=False)
    except GuardOnDataDependentSymNode as error:
        raise UnsupportedModelError(
            f"{type(module).__name__}: {Path(warning.filename).name} line {warning.lineno} decides by the values of a "
            "tensor, which an ONNX graph cannot follow; use torch.where, or move the decision out of forward"
        ) from error
    except Exception:
        # Whatever else torch.export cannot do is no fault of the graph that tracing gave; the comparison judges that.
        return


@contextlib.contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's own mode is restored, since some may be frozen."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_sample(inputs: tuple[Any, ...]) -> None:
    for index, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            raise InputError(f"sample: input {index} is a {type(value).__name__}; give tensors")
        if value.ndim == 0 or len(value) == 0:
            raise InputError(
                f"sample: input {index} has shape {list(value.shape)}; give at least one row, the first axis being the batch"
            )
        if len(value) != len(inputs[0]):
            raise InputError(
                f"sample: input {index} has {len(value)} rows, input 0 has {len(inputs[0])}; the first axis is the batch of all"
            )
    if not inputs:
        raise InputError("sample: is empty; give the inputs of forward")


def _run(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Outputs:
    """The module's outputs under the names they have in the model."""
    try:
        result = module(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}" for value in inputs)
        raise InputError(
            f"sample: {type(module).__name__} does not take {shapes} ({reason(error)}); "
            "give tensors as its forward expects them"
        ) from error
    named = _named_outputs(result)
    strange = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if strange or not named:
        raise UnsupportedModelError(
            f"{type(module).__name__}: forward returns {_kinds(result)}; return a tensor, a tuple or a dict of tensors"
        )
    return {name: value.detach().cpu().numpy() for name, value in named.items()}


def _named_outputs(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    if isinstance(result, (tuple, list)):
        return {f"output_{index}": value for index, value in enumerate(result)}
    return {"output": result}


def _kinds(result: Any) -> str:
    parts = list(result.values()) if isinstance(result, Mapping) else result
    if not isinstance(parts, (tuple, list)):
        return f"a {type(result).__name__}"
    return f"a {type(result).__name__} of {', '.join(type(part).__name__ for part in parts) or 'nothing'}"


def _input_names(module: torch.nn.Module, count: int) -> list[str]:
    """Names of the first arguments of `forward`, or input_0, … where it takes `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    return arguments[:count] if len(arguments) >= count else [f"input_{index}" for index in range(count)]


def _arrays(names: list[str], inputs: tuple[torch.Tensor, ...]) -> dict[str, NDArray[Any]]:
    return {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}


def _one_more_row(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat([value, value[:1]]) for value in inputs)
