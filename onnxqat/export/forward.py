"""The forward pass of a PyTorch module that is exported: its inputs, its outputs by name, and their structure."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.names import named_outputs
from onnxqat.export.quiet import reason

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Tensors = tuple[torch.Tensor, ...]

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Forward:
    """The forward pass to export.

    Attributes:
        module: the module, in evaluation mode and float32.
        inputs: the positional inputs of its `forward`; their first axis is the batch.
        names: names of the inputs.
        outputs: the outputs by name, for these inputs.
        structure: how `forward` returns them, as `onnxqat.graph.structure.OUTPUTS` says; None for a tensor or tuple.
    """

    module: torch.nn.Module
    inputs: Tensors
    names: list[str]
    outputs: Arrays
    structure: str | None

    @property
    def kind(self) -> str:
        """Class of the module, for messages."""
        return type(self.module).__name__

    def batched(self) -> list[str]:
        """Names of the outputs whose first axis is the batch."""
        return [name for name, value in self.outputs.items() if value.ndim and len(value) == len(self.inputs[0])]

    def with_more_rows(self) -> Forward:
        """The same pass over one row more.

        Raises:
            UnsupportedModelError: the module does not take it.
        """
        inputs = tuple(torch.cat([value, value[:1]]) for value in self.inputs)
        try:
            return forward(self.module, inputs)
        except UnsupportedModelError:
            raise
        except InputError as error:
            raise UnsupportedModelError(
                f"{self.kind}: forward takes {len(self.inputs[0])} rows but not {len(inputs[0])} "
                f"({reason(error.__cause__ or error)}); take the batch size from the input's shape wherever the code fixes it"
            ) from error

    def arrays(self) -> Arrays:
        """The inputs by name."""
        return {name: value.detach().cpu().numpy() for name, value in zip(self.names, self.inputs, strict=True)}


def forward(module: torch.nn.Module, inputs: Tensors) -> Forward:
    """Runs the module.

    Raises:
        InputError: the inputs do not fit the module.
        UnsupportedModelError: it returns what no model can, or half precision.
    """
    kind = type(module).__name__
    try:
        result = module(*inputs)
    except Exception as error:
        shapes = ", ".join(f"{list(value.shape)} {_type(value)}" for value in inputs)
        raise InputError(
            f"sample: {kind} does not take {shapes} ({reason(error)}); give tensors as its forward expects them"
        ) from error
    named = named_outputs(result)
    if not named or any(not isinstance(value, torch.Tensor) for value in named.values()):
        raise UnsupportedModelError(
            f"{kind}: forward returns {_kinds(result)}; return a tensor, a tuple or a dict of tensors"
        )
    for name, value in named.items():
        if value.dtype in HALF:
            raise UnsupportedModelError(
                f"{kind}: output {name!r} is {_type(value)}; leave out of forward what turns it to that type"
            )
    arrays = {name: value.detach().cpu().numpy() for name, value in named.items()}
    return Forward(module, inputs, _input_names(module, len(inputs)), arrays, _structure(result))


def single_precision(module: torch.nn.Module, inputs: Tensors) -> tuple[torch.nn.Module, Tensors]:
    """The module and its inputs, half precision among them as float32 in a copy of the module.

    Raises:
        UnsupportedModelError: the module computes in half precision and cannot be copied.
    """
    found = {value.dtype for value in (*module.parameters(), *module.buffers()) if value.dtype in HALF}
    if not found:
        return module, inputs
    kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
    try:
        module = copy.deepcopy(module)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(module).__name__}: holds {kinds} weights and cannot be copied ({reason(error)}); call its float() first"
        ) from error
    for value in (*module.parameters(), *module.buffers()):
        value.data = _widened(value.data)
    log.warning("%s: exported as float32; its weights are %s", type(module).__name__, kinds)
    return module, tuple(_widened(value) for value in inputs)


@contextlib.contextmanager
def evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's own mode is restored, since some may be frozen."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def check_sample(inputs: tuple[Any, ...]) -> None:
    """Raises InputError for inputs that are not tensors of the same number of rows."""
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


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in HALF else value


def _type(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _structure(result: Any) -> str | None:
    if isinstance(result, Mapping):
        return json.dumps([str(name) for name in result])
    return json.dumps("tuple") if isinstance(result, (tuple, list)) and len(result) == 1 else None


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
