"""The door to ONNX Runtime for training: its values, in memory that arrays of others share, and runs on what is bound."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state

from onnxqat.runtime import cannot_run
from onnxqat.runtime.devices import Device

Array = NDArray[Any]
Floats = NDArray[np.float32]
Value: TypeAlias = ort.OrtValue
Loaded: TypeAlias = ort.InferenceSession
Binding: TypeAlias = ort.IOBinding

#: ONNX Runtime's words for types of tensors.
TYPES = {
    f"tensor({words})": dtype
    for words, dtype in {
        "float": ir.DataType.FLOAT,
        "double": ir.DataType.DOUBLE,
        "float16": ir.DataType.FLOAT16,
        "bfloat16": ir.DataType.BFLOAT16,
        "bool": ir.DataType.BOOL,
        **{
            f"{sign}int{bits}": ir.DataType[f"{sign}int{bits}".upper()]
            for sign in ("", "u")
            for bits in (8, 16, 32, 64)
        },
    }.items()
}


class Double:
    """A flat array as a device has it: on the CPU the array itself, elsewhere a copy in memory that the device works on.

    Args:
        array: the array; it lives as long as this does.
        device: the device.
    """

    def __init__(self, array: Floats, device: Device) -> None:
        self._array, self._memory, self._own = array, device.memory, not device.is_cpu
        shape = list(array.shape)
        self._value = (
            ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *self._memory)
            if self._own
            else as_value(array)
        )

    def send(self) -> None:
        """Brings the copy up to date."""
        if self._own:
            self._value.update_inplace(self._array)

    def fetch(self) -> None:
        """Brings the array up to date."""
        if self._own:
            self._array[:] = self._value.numpy()

    def place(self, view: Floats) -> tuple[Any, ...]:
        """The place of what a view of the array shows, as a binding takes it."""
        offset = view.ctypes.data - self._array.ctypes.data
        return *self._memory, np.float32, view.shape, self._value.data_ptr() + offset


def run_bound(loaded: Loaded, binding: Binding) -> None:
    """Runs a session on what is bound.

    Raises:
        InputError: it cannot.
    """
    try:
        binding.synchronize_inputs()
        loaded.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except Exception as error:
        raise cannot_run(error, "batch: ONNX Runtime cannot run the model on it") from error


def as_value(array: Array) -> Value:
    """A value of ONNX Runtime's that lies where the array does and keeps it alive."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def allocated(shape: Sequence[int], dtype: ir.DataType) -> Value:
    """Memory of ONNX Runtime's own, which lives as long as anybody holds the value, by whatever name."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.numpy())


def view(value: Value) -> Array:
    """The array of a value on the CPU, in its memory; the value must outlive it."""
    dtype, shape = TYPES[value.data_type()].numpy(), value.shape()
    size = prod(shape) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * size).from_address(value.data_ptr()), dtype).reshape(shape)


#: Whether DLPack as this ONNX Runtime reads it has booleans; else they come as bytes.
DLPACK_HAS_BOOLEANS = hasattr(ort.OrtValue, "from_dlpack")


def from_dlpack(tensor: Any, *, boolean: bool = False) -> Value:
    """A value in the memory of a contiguous tensor of another library, on whatever device, which it keeps alive.

    Args:
        tensor: the tensor; see `DLPACK_HAS_BOOLEANS`.
        boolean: whether it holds booleans.
    """
    if DLPACK_HAS_BOOLEANS:
        return ort.OrtValue.from_dlpack(tensor)
    return ort.OrtValue(_pybind_state.OrtValue.from_dlpack(tensor.__dlpack__(), boolean))


def dlpack(value: Value) -> Any:
    """The value as what the array libraries' `from_dlpack` take over without a copy."""
    return value._ortvalue


def aligned(size: int) -> Floats:
    """Zeros that begin on a cache line, as vector instructions and ONNX Runtime's own buffers do."""
    raw = np.zeros(size + 16, np.float32)
    start = (-raw.ctypes.data // 4) % 16
    return raw[start : start + size]
