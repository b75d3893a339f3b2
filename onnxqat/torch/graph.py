"""A module's graph as PyTorch's operators find it: by a name, since an operator takes only tensors and plain values."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from onnxqat.data.batch import Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.runtime.devices import Device
from onnxqat.training.loop.staging import Stage
from onnxqat.training.running.program import Chain, Program, Take
from onnxqat.training.running.values import DLPACK_HAS_BOOLEANS, Array, Value, allocated, as_value, dlpack, from_dlpack
from onnxqat.training.training_graph.halves import Function, Halves, cotangent, gradient
from onnxqat.training.wrapped import Wrapped

#: Sizes of a tensor; while PyTorch compiles, that of the batch may be a symbol.
Shape: TypeAlias = tuple[Any, ...]

_numbers = itertools.count()
_living: weakref.WeakValueDictionary[str, Graph] = weakref.WeakValueDictionary()


class Graph:
    """A wrapped model under a name of its own; a copy, also one out of a file, has another name.

    Attributes:
        name: the name.
        wrapped: the model.
        signature: what its inputs must be.
        tensors: names of all that a run is given: inputs, parameters, zero points.
        parameters: shape of each parameter, by name.
        scales_and_others: names of those that are scales, and of the others.
        memory: where results lie that parts of a batch fill.
    """

    def __init__(self, wrapped: Wrapped, signature: Signature) -> None:
        self.wrapped, self.signature = wrapped, signature
        whole = wrapped.whole
        self.parameters = {one.name: one.shape for one in whole.layout.parameters}
        scales = [one.name for one in whole.layout.parameters if one.kind == "scale"]
        self.scales_and_others = scales, [name for name in self.parameters if name not in scales]
        self.tensors = [*signature.inputs, *self.parameters, *whole.zero_points]
        self.name = str(next(_numbers))
        self._calls: dict[tuple[Stage, tuple[str, ...]], Call] = {}
        self._shapes: dict[tuple[Call, tuple[Shape, ...]], list[Shape]] = {}
        self._set_to = whole
        self.memory = Memory()
        _living[self.name] = self

    @staticmethod
    def called(name: str) -> Graph:
        """The graph of that name.

        Raises:
            InputError: its module is gone.
        """
        found = _living.get(name)
        if found is None:
            raise InputError(
                "module: is gone, but its graph is run; keep the module as long as what was compiled of it"
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph, (self.wrapped, self.signature)

    def call(self, stage: str, asked: Sequence[bool]) -> Call:
        """The call with gradients by the tensors that are asked for, in the stage in which these kinds are quantized."""
        if self._set_to is not self.wrapped.whole:  # zero points have changed
            self._calls, self._shapes, self._set_to = {}, {}, self.wrapped.whole
        wrt = tuple(name for name, wanted in zip(self.tensors, asked, strict=True) if wanted)
        key = Stage("activations" in stage, "weights" in stage), wrt
        if key not in self._calls:
            self._calls[key] = Call(self.wrapped.at(key[0]), wrt)
        return self._calls[key]

    def values(self, tensors: Sequence[torch.Tensor]) -> dict[str, Value]:
        """The tensors as ONNX Runtime's values, after the inputs have been checked; sets the graph to the zero points given.

        Raises:
            InputError: an input does not fit the model, or zero points are not of this model.
        """
        given = dict(zip(self.tensors, tensors, strict=True))
        self.wrapped.set_zero_points({name: given.pop(name).cpu().numpy() for name in self.wrapped.whole.zero_points})
        check_batch({name: _stand_in(given[name]) for name in self.signature.inputs}, self.signature)
        for name, (dtype, _) in self.signature.inputs.items():
            given[name] = given[name].to(getattr(torch, dtype.name))
        return as_values(given)

    def out_of_bounds(
        self, parameters: Mapping[str, torch.Tensor], bounds: Sequence[torch.Tensor]
    ) -> list[tuple[str, torch.Tensor]]:
        """Scales that have left their bounds, by name, as they are to be."""
        self.wrapped.bounds = bounds[0].cpu().numpy(), bounds[1].cpu().numpy()
        arrays = {name: as_array(tensor.cpu()) for name, tensor in parameters.items()}
        changed = self.wrapped.within_bounds(arrays)
        return [(name, torch.from_numpy(np.asarray(array))) for name, array in changed.items()]

    def shapes(self, call: Call, inputs: Sequence[Shape]) -> list[Shape]:
        """Shapes of a call's results at these shapes of inputs: constant or linear in the batch, where that is a symbol.

        ONNX Runtime knows them: the graph is run on zeros, once for each shape of inputs.
        """
        declared = [shape for _, shape in self.signature.inputs.values()]
        sizes = [_declared(given, shape) for given, shape in zip(inputs, declared, strict=True)]
        batch = next((shape[0] for shape in sizes if shape and not isinstance(shape[0], int)), None)
        if batch is None:
            return self._measured(call, [tuple(map(int, shape)) for shape in sizes])
        two, three, four = (self._measured(call, [_at(shape, batch, rows) for shape in sizes]) for rows in (2, 3, 4))
        if any(
            2 * b != a + c for s, t, u in zip(two, three, four, strict=True) for a, b, c in zip(s, t, u, strict=True)
        ):
            return self._measured(call, [tuple(map(int, shape)) for shape in sizes])
        return [
            tuple(a if a == b else a + (b - a) * (batch - 2) for a, b in zip(s, t, strict=True))
            for s, t in zip(two, three, strict=True)
        ]

    def _measured(self, call: Call, shapes: Sequence[tuple[int, ...]]) -> list[Shape]:
        key = call, tuple(shapes)
        if key not in self._shapes:
            inputs = zip(self.signature.inputs.items(), shapes, strict=True)
            arrays = {name: np.zeros(shape, dtype) for (name, (dtype, _)), shape in inputs}
            arrays |= self.wrapped.whole.layout.named(self.wrapped.whole.initial)
            found = call.forward({name: as_value(array) for name, array in arrays.items()})
            self._shapes[key] = [tuple(found[name].shape()) for name in call.results]
        return self._shapes[key]


@dataclass(frozen=True, eq=False)
class Call:
    """A run of a function, and what its gradient by some tensors takes.

    Attributes:
        function: the function.
        wrt: names of the tensors by which it is differentiated.
    """

    function: Function
    wrt: tuple[str, ...]

    @cached_property
    def halves(self) -> Halves:
        """The two halves of the gradient graph; scales that the stage does not use are no part of it."""
        known = {one.name for one in self.function.layout.parameters}
        known |= {str(value.name) for value in self.function.qdq.graph.inputs}
        return self.function.halves(frozenset(self.wrt) & known)

    @cached_property
    def results(self) -> list[str]:
        """Names of the computed outputs, and of what else the backward half reads of the forward half."""
        crossing = [name for name in self.halves.backward.inputs if name in self._types] if self.wrt else []
        return list(dict.fromkeys([*self.function.computed, *crossing]))

    @cached_property
    def types(self) -> list[torch.dtype]:
        """Types of the results."""
        return [getattr(torch, self._types[name].numpy().name) for name in self.results]

    @property
    def _types(self) -> Mapping[str, ir.DataType]:
        return self.halves.forward.outputs if self.wrt else self.function.plain.outputs

    def saved(self, inputs: Sequence[str]) -> list[str]:
        """Names of what the backward half is given of tensors and results, and of inputs whose gradient has their shape."""
        cotangents = {cotangent(name) for name in self.function.differentiable}
        read = [name for name in self.halves.backward.inputs if name not in cotangents]
        return list(dict.fromkeys([*read, *(name for name in inputs if name in self.wrt)]))

    def forward(self, values: Mapping[str, Value], take: Take = allocated) -> dict[str, Value]:
        """The results by name; see `Program` for `take`."""
        run: Program | Chain = self.halves.forward if self.wrt else self.function.plain
        return run(values, take)

    def backward(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Gradients by name; those of scales that the stage does not use are missing."""
        found = self.halves.backward(values)
        return {name: found[gradient(name)] for name in self.wrt if gradient(name) in found}


class Memory:
    """Memory for results, used again once no tensor reads it: pages fresh from the system would cost up to a fifth of a step."""

    def __init__(self) -> None:
        self._free: dict[int, list[Array]] = {}

    def take(self, shape: Sequence[int], dtype: ir.DataType) -> Value:
        """Memory of that shape and type, which nobody else has until the value and all tensors made of it are gone."""
        kind: torch.dtype = getattr(torch, dtype.numpy().name)
        size = prod(shape) * kind.itemsize
        if not size:
            return allocated(shape, dtype)
        if not self._free.get(size):  # shapes have changed: what else is free will not be asked for
            self._free = {size: [np.empty(size, np.uint8)]}
        block = self._free[size].pop()
        array = block[:]  # lives as long as any tensor made of it
        weakref.finalize(array, self._give_back, block).atexit = False
        return as_values({"": torch.from_numpy(array).view(kind).reshape(shape)})[""]

    def _give_back(self, block: Array) -> None:
        self._free.setdefault(block.size, []).append(block)


def home(device: Device) -> torch.device:
    """The device on which a graph takes PyTorch's tensors: its own where PyTorch has that too, else the CPU."""
    kind, number = device.memory
    return torch.device(kind, number) if kind == "cuda" and torch.cuda.is_available() else torch.device("cpu")


def as_array(parameter: torch.Tensor) -> Array:
    """The parameter as an array in the same memory, which FullyShardedDataParallel may free: after `numpy()` it could not."""
    return np.from_dlpack(parameter.detach())


def as_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, Value]:
    """The tensors, all on one device, as ONNX Runtime's values in the same memory, when what computes them there is done."""
    for device in {tensor.device for tensor in tensors.values()}:
        getattr(torch, device.type).synchronize(device)
    found = {}
    for name, tensor in tensors.items():
        held, boolean = tensor.detach().contiguous(), tensor.dtype == torch.bool
        if not held.numel():  # ONNX Runtime takes none for contiguous
            found[name] = as_value(held.cpu().numpy())
            continue
        as_bytes = boolean and not DLPACK_HAS_BOOLEANS
        found[name] = from_dlpack(held.view(torch.uint8) if as_bytes else held, boolean=boolean)
    return found


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU of the same type and shape, but of one number: NaN where one of them is not finite, else 0."""
    finite = not tensor.is_floating_point() or _is_finite(tensor)
    return torch.full((), 0 if finite else torch.nan, dtype=tensor.dtype).expand(tensor.shape)


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        return bool(np.isfinite(tensor.detach().numpy()).all())  # PyTorch would wake threads for it, and wait for them
    return bool(torch.isfinite(tensor).all())


def as_tensor(value: Value) -> torch.Tensor:
    """ONNX Runtime's value as a tensor in the same memory."""
    tensor = torch.from_dlpack(dlpack(value))
    # DLPack as ONNX Runtime 1.19 writes it has no booleans.
    return tensor.view(torch.bool) if value.data_type() == "tensor(bool)" else tensor


def _declared(given: Shape, declared: tuple[int | None, ...] | None) -> Shape:
    """The shape with the sizes that the model fixes, and with no symbol but that of the batch."""
    fixed = declared if declared is not None and len(declared) == len(given) else (None,) * len(given)
    pairs = enumerate(zip(given, fixed, strict=True))
    return tuple(size if size is not None else one if not axis else int(one) for axis, (one, size) in pairs)


def _at(shape: Shape, batch: Any, rows: int) -> tuple[int, ...]:
    """The shape at that many rows; other symbols get their value."""
    return tuple(
        rows if size is batch or (not isinstance(size, int) and size == batch) else int(size) for size in shape
    )
