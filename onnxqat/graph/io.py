"""Models in and out: every file a user names is checked here, and every file appears whole or not at all."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import external, files
from onnxqat.graph.attributes import check_attributes
from onnxqat.graph.codes import move_floats
from onnxqat.graph.indices import check_indices
from onnxqat.graph.limits import check_depth, check_growth
from onnxqat.graph.operands import check_operands
from onnxqat.graph.opsets import is_foreign, lowered
from onnxqat.graph.sparse import dense
from onnxqat.graph.types import check_ranks
from onnxqat.graph.validity import check_valid

log = logging.getLogger(__name__)

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model

#: Newest opset that onnxruntime-training 1.19.2 loads.
NEWEST_OPSET = 21
NEWEST_IR = 10
#: Older ones list every initializer among the inputs.
OLDEST_IR = 8
#: QuantizeLinear has had an axis since this one.
OLDEST_OPSET = 13


def load(model: ModelLike, *, oldest_opset: int = OLDEST_OPSET, foreign: bool = False) -> ir.Model:
    """Loads and checks a model: readable, standard operators only, opset in range or lowered, external data in place.

    The result is the caller's to change: the argument is never modified. Model-local functions are inlined, external data is
    read into memory unless it is more than protobuf can hold: then large weights are mapped from their file.

    Args:
        model: path of an ONNX file, or a model in memory.
        oldest_opset: smallest opset of the default domain to let through.
        foreign: whether to let operators through that are not ONNX's own.

    Raises:
        InputError: the file is missing, not ONNX, cut off, of an opset that is too old or cannot be lowered, or its external data
            is not in place.
        UnsupportedModelError: the model uses operators that are not ONNX's own.
    """
    if isinstance(model, ir.Model):
        loaded = model.clone()
    elif isinstance(model, onnx.ModelProto):
        for tensor in external.tensors(model):
            raise InputError(
                f"model: initializer {tensor.name!r} is external data that is not loaded; give the model's path"
            )
        loaded = _from_proto(model, "model")
    else:
        loaded = _from_file(Path(model))
    _use_short_domain(loaded)
    if loaded.functions:
        _inline(loaded)
    if not foreign:
        _check_foreign(loaded)
    _check_versions(loaded)
    check_depth(loaded)
    check_attributes(loaded)
    check_indices(loaded)
    check_operands(loaded)
    check_ranks(loaded)
    check_growth(loaded)
    if opset(loaded) > NEWEST_OPSET:
        loaded = lowered(loaded, NEWEST_OPSET)
    _check_opset(loaded, oldest_opset)
    move_floats(loaded)
    loaded.ir_version = min(max(loaded.ir_version, OLDEST_IR), NEWEST_IR)
    return loaded


def _use_short_domain(model: ir.Model) -> None:
    """Writes the default domain as "", where the file calls it by its other name "ai.onnx"."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        version = imports.pop("ai.onnx", None)
        if version is not None:
            imports[""] = max(version, imports.get("", 0))
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            if node.domain == "ai.onnx":
                node.domain = ""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf, with all of its weights in it: mapped ones are read one by one."""
    proto = ir.to_proto(model)
    external.fill_in(proto, model)
    return proto


def save(model: onnx.ModelProto | ir.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model, whole or not at all, and only over a model; large weights go to `<name>.data` beside it (see `files`).

    Args:
        model: the model.
        path: file to write.

    Example:
        ```python
        onnxqat.save(onnxqat.fold("model.qdq.onnx"), "model.int8.onnx")
        ```

    Raises:
        InputError: the path cannot be written.
    """
    files.write(path, MODEL, lambda file: write(model, file))


def write(model: onnx.ModelProto | ir.Model, file: Path) -> None:
    """Writes a model to a new file, large weights to `<name>.data` beside it."""
    if external.weight_bytes(model) <= external.TOO_LARGE:
        proto = model if isinstance(model, onnx.ModelProto) else to_proto(model)
        file.write_bytes(proto.SerializeToString())
        return
    large = model if isinstance(model, ir.Model) else ir.from_proto(model)
    ir.save(large, file, format="protobuf", external_data=f"{file.name}{files.DATA}")


def _is_model(path: Path) -> bool:
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:  # whatever the bytes of another kind of file set off in the parser
        return False
    return bool(proto.ir_version) and proto.HasField("graph")


def _data_files(path: Path) -> list[Path]:
    """The files of a model's external data."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:  # as above
        return []
    return list({path.parent / location for location in external.locations(proto)})


MODEL = files.Kind("an ONNX model", _is_model, text=False, parts=_data_files)


def opset(model: ir.Model) -> int:
    """Version of the default operator set that the model imports."""
    return model.opset_imports.get("", 0)


def _from_file(path: Path) -> ir.Model:
    files.check_present(path)
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: not an ONNX file, or cut off; export the model again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    external.check(proto, path)
    model = _from_proto(proto, str(path))
    external.read(model, path.parent)
    return model


def _from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.ir_version or not proto.graph.node:
        raise InputError(f"{name}: holds no ONNX graph, or is cut off; export the model again")
    try:
        check_valid(proto)
        return ir.from_proto(dense(proto))
    except Exception as error:  # whatever damaged bytes may set off in three parsers
        raise InputError(f"{name}: not a valid ONNX model ({_reason(error)}); export the model again") from error


def _inline(model: ir.Model) -> None:
    try:
        passes.InlinePass()(model)
    except Exception as error:
        raise InputError(
            f"model: its local functions cannot be inlined ({_reason(error)}); export the model without them"
        ) from error
    model.functions.clear()
    passes.RemoveUnusedOpsetsPass()(model)


def _reason(error: BaseException) -> str:
    """The first line of the first error of a chain: onnx-ir wraps the telling one in many that quote the graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _check_foreign(model: ir.Model) -> None:
    custom = Counter(f"{n.domain}::{n.op_type}" for n in model.graph.all_nodes() if n.domain not in ("", "ai.onnx"))
    if custom:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(custom.items()))
        raise UnsupportedModelError(
            f"custom operators {listed}: only standard ONNX operators are handled; export without them"
        )

    unknown = {n.op_type for n in model.graph.all_nodes() if is_foreign(n)}
    if unknown:
        raise UnsupportedModelError(
            f"operators {', '.join(sorted(unknown))} have no ONNX form; replace the layers that make them"
        )


def _check_versions(model: ir.Model) -> None:
    version = opset(model)
    own = {n.op_type for n in model.graph.all_nodes() if not is_foreign(n)}
    newer = {name for name in own if version > 0 and not onnx.defs.has(name, version)}
    if newer:
        raise InputError(
            f"model: operators {', '.join(sorted(newer))} do not exist in opset {version}; export the model again"
        )


def _check_opset(model: ir.Model, oldest: int) -> None:
    version = opset(model)
    if version < oldest:
        raise InputError(
            f"opset {version} is older than {oldest}; convert the model with onnx.version_converter to opset 17"
        )
