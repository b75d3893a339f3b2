"""Arrays that are seldom read, in a nameless file instead of memory, where they only are as long as nobody needs the room."""

from __future__ import annotations

import logging
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

log = logging.getLogger(__name__)

#: Bytes from which on a file is worth it.
WORTH = 2**24
#: Bytes of a weight that is put aside; what is smaller is read often, and its neighbours with it.
_LARGE = 2**16
#: Arrays begin in the file at multiples of this.
_LINE = 64


def put_aside(tensors: Sequence[ir.TensorProtocol]) -> list[Array]:
    """Copies of arrays that cannot be written to, in a file that goes with them; in memory where small or the disk full."""
    starts = [0, *accumulate(-(-tensor.nbytes // _LINE) * _LINE for tensor in tensors)]
    if starts[-1] >= WORTH:
        try:
            mapping = _written(tensors, starts)
        except OSError as error:
            log.debug("%.0f MB stay in memory: %s", starts[-1] / 1e6, error.strerror)
        else:
            return [_mapped(mapping, *pair) for pair in zip(tensors, starts, strict=False)]
    return [np.array(tensor.numpy()) for tensor in tensors]


def let_go(mapped: Any) -> None:
    """Lets the system take back the memory of what is mapped from a file; it is read from there again when it is needed."""
    base = mapped
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):  # Windows takes it back by itself
        base.madvise(mmap.MADV_DONTNEED)


def put_weights_aside(model: ir.Model) -> None:
    """Puts a model's large weights aside, in place, and lets go of the protobuf message that the model came in.

    A message is in memory as long as anything of it is, so that all other tensors become the model's own.
    """
    held = {value: tensor for value in model.graph.initializers.values() if (tensor := value.const_value) is not None}
    weights = {value: tensor for value, tensor in held.items() if _is_large(tensor)}
    for (value, tensor), array in zip(weights.items(), put_aside(list(weights.values())), strict=True):
        value.const_value = _with(array, tensor)
    for value in held.keys() - weights.keys():
        value.const_value = _own(held[value])
    for node, name in list(_tensors_of_nodes(model)):
        node.attributes[name] = ir.AttrTensor(name, _own(node.attributes[name].as_tensor()))


def _written(tensors: Sequence[ir.TensorProtocol], starts: Sequence[int]) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        for tensor, (start, end) in zip(tensors, pairwise(starts), strict=True):
            content = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
            file.write(content.data)
            file.write(bytes(end - start - content.size))
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped(mapping: mmap.mmap, tensor: ir.TensorProtocol, start: int) -> Array:
    found: Array = np.frombuffer(mapping, tensor.dtype.numpy(), tensor.size, start)
    return found.reshape(tensor.shape.numpy())


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether it is a large float32 tensor in memory."""
    in_memory = not isinstance(tensor, ir.ExternalTensor)
    return in_memory and tensor.dtype == ir.DataType.FLOAT and tensor.nbytes >= _LARGE


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return _with(np.array(tensor.numpy()), tensor) if isinstance(tensor, ir.TensorProtoTensor) else tensor


def _with(array: Array, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(array, tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _tensors_of_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield node, name
