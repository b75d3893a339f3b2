"""Weights in files beside a model: checked, read, mapped where they are more than protobuf can hold, linked for a runtime."""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxqat.errors import InputError, cut
from onnxqat.graph.aside import let_go
from onnxqat.graph.edit import make_inputs

#: Above this many bytes a protobuf file cannot hold the weights (its limit is 2 GiB).
TOO_LARGE = 1_500_000_000
#: Weights of such models stay on disk from this size on, mapped into memory while they are read; each takes a file handle.
MAPPED_ABOVE = 2**22
#: Below this size they stay in the model's own file: runtimes work out shapes with them.
SMALL = 256


def weight_bytes(model: onnx.ModelProto | ir.Model) -> int:
    """Size of the initializers in bytes."""
    if isinstance(model, onnx.ModelProto):
        return sum(len(t.raw_data) or tensor_bytes(t) for t in model.graph.initializer)
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors of a model whose data is in another file."""
    return (tensor for tensor in all_tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def locations(proto: onnx.ModelProto) -> set[str]:
    """Names of the files with the model's external data, as the model says them."""
    return {entry.value for tensor in tensors(proto) for entry in tensor.external_data if entry.key == "location"}


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors of a model: initializers, and constants of nodes, in subgraphs and functions too."""
    nodes = [node for function in proto.functions for node in function.node]
    graphs = [proto.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from graph.initializer
            continue
        for attribute in nodes.pop().attribute:
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs
            yield from [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors


def check(proto: onnx.ModelProto, path: Path) -> None:
    """Raises InputError where the external data of the model at `path` is missing, cut off or outside of its folder."""
    for tensor in tensors(proto):
        try:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
            offset, length, needed = int(info.offset or 0), int(info.length or 0), tensor_bytes(tensor)
        except (ValueError, TypeError) as error:  # a number that is none, a type that has no size
            raise InputError(
                f"{path}: initializer {tensor.name!r} has an incorrect location of its data; export the model again"
            ) from error
        what = f"external data file {cut(info.location, 100)!r} of initializer {tensor.name!r}"
        if not _stays_inside(info.location, path.parent):
            raise InputError(f"{path}: {what} is outside the model's folder; save the model with its data beside it")
        size = _size(path.parent / info.location)
        if size is None:
            raise InputError(f"{path}: {what} is missing; put it beside the model")
        if offset < 0 or needed < 0 or length < 0 or (length and length < needed):
            raise InputError(
                f"{path}: initializer {tensor.name!r} has an incorrect location of its data; export the model again"
            )
        if size < offset + max(length, needed):
            raise InputError(f"{path}: {what} is cut off; copy it again, whole")


def _stays_inside(location: str, folder: Path) -> bool:
    """Whether a location leads into the folder; links may also lead to the files of the Hugging Face cache that it is in."""
    if Path(location).is_absolute() or os.path.normpath(location).startswith(".."):
        return False
    try:
        folder = folder.resolve()
        file = (folder / location).resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, links in a circle
        return True
    caches = (one.parent / "blobs" for one in (folder, *folder.parents) if one.name == "snapshots")
    return any(file.is_relative_to(root) for root in (folder, *caches))


def _size(file: Path) -> int | None:
    """Bytes of a regular file; None where there is none."""
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def read(model: ir.Model, folder: Path) -> None:
    """Reads external data into memory; where it is too much, large weights of the main graph are mapped from their file."""
    ir.external_data.set_base_dir(model.graph, folder.resolve())
    for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _at(value.const_value, Path(value.const_value.path).resolve())
    on_disk = mapped(model) if weight_bytes(model) > TOO_LARGE else {}
    large = {value: tensor for value, tensor in on_disk.items() if tensor.nbytes > MAPPED_ABOVE}
    for value in large:
        value.const_value = None
    ir.external_data.load_to_model(model)
    for value, tensor in large.items():
        value.const_value = tensor


def mapped(model: ir.Model) -> dict[ir.Value, ir.ExternalTensor]:
    """Initializers of the main graph whose data is on disk."""
    tensors = {value: value.const_value for value in model.graph.initializers.values()}
    return {value: tensor for value, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}


def forget(tensor: ir.TensorProtocol | None) -> None:
    """Lets the system take back the memory of a mapped weight; it is read from its file again when it is needed."""
    if isinstance(tensor, ir.ExternalTensor | ir.Tensor):
        let_go(tensor.raw)


def forget_all(model: ir.Model) -> None:
    """Does so with all weights of a model."""
    for value in model.graph.initializers.values():
        forget(value.const_value)


def fill_in(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Puts the mapped weights of the model into its protobuf form, one by one."""
    on_disk = {str(value.name): tensor for value, tensor in mapped(model).items()}
    for tensor in tensors(proto):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = on_disk[tensor.name].tobytes()
        on_disk[tensor.name].release()


def save_linked(model: ir.Model, path: Path) -> None:
    """Writes a model for a runtime to load at once, alone in its folder: mapped weights stay where they are, behind links."""
    before = {value: value.const_value for value in model.graph.initializers.values()}
    on_disk = mapped(model)
    rest = {v: t for v, t in before.items() if v not in on_disk and t is not None and t.nbytes > SMALL}
    try:
        written = ir.external_data.convert_tensors_to_external(list(rest.values()), path.parent, f"{path.name}.data")
        for value, tensor in zip(rest, written, strict=True):
            value.const_value = tensor
        for value, tensor in on_disk.items():
            value.const_value = _linked(tensor, path.parent)
        path.write_bytes(ir.to_proto(model).SerializeToString())
    finally:
        for value, was in before.items():
            value.const_value = was


def _linked(tensor: ir.ExternalTensor, folder: Path) -> ir.ExternalTensor:
    """The same weight behind a link in `folder` to the file that holds it, or in a copy where links are not allowed."""
    file = Path(tensor.path).resolve()
    link = folder / f"{zlib.crc32(str(file).encode())}_{file.name}"
    if not link.exists():
        try:
            link.symlink_to(file)
        except OSError:  # Windows lets few users make links
            shutil.copyfile(file, link)
    return _at(tensor, link)


def _at(tensor: ir.ExternalTensor, file: Path) -> ir.ExternalTensor:
    """The same weight, read by the name of that file: behind a link, onnx-ir takes a file for one outside its folder."""
    return ir.ExternalTensor(
        file.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=file.parent,
    )


def without_weights(model: onnx.ModelProto | ir.Model) -> onnx.ModelProto:
    """A copy of the model in which weights are inputs, except small ones; what external data other tensors have is left out."""
    proto = model if isinstance(model, onnx.ModelProto) else _without_large(model)
    bare, graph = onnx.ModelProto(), onnx.GraphProto()
    _copy(proto, bare, leave="graph")
    _copy(proto.graph, graph, leave="initializer")
    listed = {value.name for value in graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor_bytes(tensor) <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    bare.graph.CopyFrom(graph)
    for tensor in tensors(bare):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.dims[:] = [0]
    return bare


def _without_large(model: ir.Model) -> onnx.ModelProto:
    """The model in protobuf form, in which large weights are inputs, so that none is copied."""
    bare = model.clone()
    weights = {str(v.name): v.const_value for v in bare.graph.initializers.values() if v.const_value is not None}
    make_inputs(bare.graph, [name for name, tensor in weights.items() if tensor.nbytes > SMALL])
    return ir.to_proto(bare)


def _copy(source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, leave: str) -> None:
    """Copies all fields but one."""
    for field, value in source.ListFields():
        if field.name == leave:
            continue
        if isinstance(value, str | int | bytes | float):
            setattr(target, field.name, value)
        elif isinstance(value, Iterable):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Size by type and shape; of texts, the size of their bytes."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    size: float = math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize  # half a byte for 4-bit types
    return math.ceil(size)
