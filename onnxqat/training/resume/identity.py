"""Identity of a run: tells a checkpoint of its own from another's, and rebuilds a trainer from a file.

A trainer only takes a checkpoint of its own run: model, initial values and arguments must be the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.process.crew import cores
from onnxqat.training.execution import Execution
from onnxqat.training.optimize import optimizers, schedules
from onnxqat.training.resume.checkpoint_files import Facts, Tensors
from onnxqat.training.training_graph.build import TrainingGraph

log = logging.getLogger(__name__)

#: Changes when an older version of this package could no longer read what is written.
FORMAT = 3

_LOSS = "loss_function"
_MISSING = object()
_KNOWN: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (optimizers.SGD, optimizers.AdamW, schedules.Constant, schedules.StepDecay, schedules.Cosine)
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a run; the same in all its checkpoints.

    Attributes:
        graph: the model and its initial values.
        arguments: those of `Trainer` that decide on the result, by name.
        execution: how its graphs run.
        processes: how many processes share the work.
    """

    graph: TrainingGraph
    arguments: Mapping[str, Any]
    execution: Execution
    processes: int = 1

    @property
    def tensors(self) -> Tensors:
        """The model without its trained values, the initial values, and the user's loss function if there is one."""
        return {**self._models, "initial": self.graph.initial}

    @cached_property
    def _models(self) -> Tensors:
        model = self.graph.qdq.clone()
        for parameter in self.graph.layout.parameters:
            value = model.graph.initializers[parameter.name]
            value.const_value = ir.tensor(np.zeros(0, np.float32), name=parameter.name)
        proto = io.to_proto(model)
        shapes = {parameter.name: parameter.shape for parameter in self.graph.layout.parameters}
        for tensor in proto.graph.initializer:
            if tensor.name in shapes:
                tensor.dims[:] = shapes[tensor.name]
                tensor.ClearField("raw_data")
        tensors = {"model": _as_array(proto.SerializeToString(deterministic=True))}
        function = _function(self.arguments["loss"])
        return tensors if function is None else {**tensors, _LOSS: _as_array(function.SerializeToString())}

    @cached_property
    def facts(self) -> Facts:
        """Returns the facts that identify the run, in a form that JSON can hold."""
        arguments = {name: _described(value) for name, value in self.arguments.items()}
        return {
            "format": FORMAT,
            "model": _sha256(self._models["model"]),
            "initial": _sha256(self.graph.initial),
            "layout": [[p.name, p.offset, list(p.shape)] for p in self.graph.layout.parameters],
            "arguments": json.loads(json.dumps(arguments)),
            "threads": self.execution.threads,
            "engine": self.graph.engine,
            "memory": self.execution.memory,
            "provider": self.execution.device.name,
            "processes": self.processes,
            "block": self.graph.used_block,
            "cores": cores(),
        }

    def check(self, facts: Facts, *, strict: bool = False) -> None:
        """Raises InputError where a checkpoint is of another run; warns where it was made in another way, or raises it too."""
        path, theirs, ours = facts["path"], facts["arguments"], self.facts["arguments"]
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"{path}: was made with {name} {_readable(theirs.get(name))}, this run has "
                    f"{_readable(ours.get(name))}; use the same, or start a new run"
                )
        memory = facts.get("memory", "auto")
        if (memory == "low") != self.execution.twice:
            raise InputError(
                f"{path}: was made with memory {memory}, this run has {self.execution.memory}; use the same, or start a new run"
            )
        if facts["model"] != self.facts["model"]:
            raise InputError(f"{path}: is of another model; give the model that it was made from, or start a new run")
        if facts["initial"] != self.facts["initial"]:
            raise InputError(
                f"{path}: is of a model with other weights or scales to begin with; give the one that it was made from"
            )
        made, now = self._division(facts), self._division(self.facts)
        if made != now and strict:
            raise InputError(
                f"{path}: was made by {made}, this run is of {now}, so that results would not be bit-identical; "
                "use the same, or resume without strict"
            )
        if made != now:
            log.warning(
                "%s: was made by %s, this run is of %s; it continues, but results are not bit-identical",
                path,
                made,
                now,
            )

    @staticmethod
    def _division(facts: Facts) -> str:
        threads = f"{facts['threads'] or facts['cores']} threads"
        if facts.get("engine", "training") != "training":
            threads += f" of the engine {facts['engine']}"
        if facts.get("provider", "cpu") != "cpu":
            threads += f" on {facts['provider']}"
        layout = f" with blocks of {facts['block']} channels" if facts.get("block") else ""
        return (
            f"{threads}{layout}" if facts["processes"] == 1 else f"{facts['processes']} processes of {threads}{layout}"
        )


def arguments_of(tensors: Tensors, facts: Facts, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the `Trainer` that a checkpoint is of; those that a file cannot hold must be `given`.

    Raises:
        InputError: one is missing.
    """
    layout = "auto" if facts.get("block") else "plain"
    engine = "runtime" if facts.get("engine") == "runtime" else "auto"
    found: dict[str, Any] = {"qdq": _model(tensors, facts), "threads": facts["threads"]}
    found |= {"layout": layout, "engine": engine, "memory": facts.get("memory", "auto")}
    found["provider"] = facts.get("provider", "cpu")
    for name, value in facts["arguments"].items():
        if name not in given:
            found[name] = _rebuilt(value, tensors)
        if found.get(name) is _MISSING:
            raise InputError(
                f"{facts['path']}: cannot hold {name} {_readable(value)}; pass it: Trainer.restore(path, {name}=…)"
            )
    return {**found, **given}


def _model(tensors: Tensors, facts: Facts) -> onnx.ModelProto:
    """The Q/DQ model as the run began with it."""
    proto: onnx.ModelProto = onnx.ModelProto.FromString(tensors["model"].tobytes())
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, offset, shape in facts["layout"]:
        size = int(np.prod(shape, dtype=np.int64))
        initializers[name].raw_data = tensors["initial"][offset : offset + size].astype("<f4").tobytes()
    return proto


def _described(value: Any) -> Any:
    """An argument in a form that JSON can hold, equal where the argument is equal."""
    if value is None or isinstance(value, str | int | float):
        return value
    function = _function(value)
    if function is not None:
        return {"function": function.name, "sha256": _sha256(_as_array(function.SerializeToString(deterministic=True)))}
    if isinstance(value, onnx.ModelProto | ir.Model | os.PathLike):
        return {"sha256": _sha256(_as_array(_proto(value).SerializeToString(deterministic=True)))}
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_described(item) for item in value]
    fields = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else {}
    return {"class": type(value).__name__, **fields}


def _rebuilt(described: Any, tensors: Tensors) -> Any:
    """The inverse of `_described`; `_MISSING` for models and for classes that are not this package's own."""
    if not isinstance(described, dict):
        return described
    if "function" in described:
        return onnx.FunctionProto.FromString(tensors[_LOSS].tobytes())
    if "class" in described:
        fields = {key: tuple(item) if isinstance(item, list) else item for key, item in described.items()}
        kind = _KNOWN.get(str(fields.pop("class")))
        return _MISSING if kind is None else kind(**fields)
    return _MISSING if "sha256" in described else described


def _readable(described: Any) -> str:
    if isinstance(described, dict) and "class" in described:
        fields = ", ".join(f"{key}={value}" for key, value in sorted(described.items()) if key != "class")
        return f"{described['class']}({fields})"
    return str(described)


def _function(loss: Any) -> onnx.FunctionProto | None:
    proto = loss if isinstance(loss, onnx.FunctionProto) else getattr(loss, "to_function_proto", lambda: None)()
    return proto if isinstance(proto, onnx.FunctionProto) else None


def _proto(model: onnx.ModelProto | ir.Model | os.PathLike[str]) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, ir.Model):
        return io.to_proto(model)
    return onnx.load(model, load_external_data=False)


def _as_array(content: bytes) -> Any:
    return np.frombuffer(content, np.uint8)


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
