"""Training in PyTorch's own loop: a Q/DQ model as a `torch.nn.Module`, run forward and backward by its ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Signature, check_batch
from onnxqat.errors import InputError, MissingExtraError
from onnxqat.graph import io
from onnxqat.training.engine import Value, as_value, dlpack
from onnxqat.training.optimize.update import scale_bounds
from onnxqat.training.resume.float_state import reason_to_refuse
from onnxqat.training.staging import KEYS
from onnxqat.training.training_graph.build import load_qdq
from onnxqat.training.training_graph.halves import Function, cotangent, gradient
from onnxqat.training.training_graph.parameters import Kind

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch is not installed; run `pip install 'onnxqat[torch]'`") from error


def as_module(qdq: io.ModelLike, *, threads: int = 0) -> QdqModule:
    """A module whose parameters are the model's weights, biases and scales, for any loss, optimizer and loop of PyTorch's.

    Args:
        qdq: the model, as `onnxqat.insert` or another quantizer wrote it.
        threads: threads inside an operator; 0: one for each core.

    Example:
        ```python
        module = onnxqat.torch.as_module(qdq)
        optimizer = torch.optim.AdamW(module.groups(lr=1e-5))
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        ```

    Raises:
        InputError: the model has no quantizers, nothing to train, or start epochs (`Config.weight_start_epoch`).
    """
    model = load_qdq(qdq)
    staged = [key for key in KEYS.values() if key in model.metadata_props]
    if staged:
        raise InputError(
            f"model: its {staged[0]!r} asks for quantization in stages, but PyTorch's own loop counts no epochs for it; "
            "train with Trainer, or insert without start epochs"
        )
    return QdqModule(model, threads)


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
    return inner._model()


class QdqModule(torch.nn.Module):  # type: ignore[misc]
    """A Q/DQ model whose initializers are PyTorch's; call it with tensors in the model's input order, or by name.

    It returns a tensor, or a tuple in the model's order where there are several outputs. Gradients are those of
    `onnxqat.Trainer.gradients`, for inputs that require one too; a parameter whose `requires_grad` is False is left out of the
    backward graph. Where no gradient is asked for (`torch.no_grad`), only the forward graph runs. Training and evaluation
    mode are the same: all quantizers are at work from the first step (start epochs of `Config` are for `Trainer`).

    Scales are parameters as they stand in the model, so an optimizer may step over zero. A scale that has left the
    bounds that `onnxqat.Trainer` keeps, at least 2**-14 of its first value, is clipped to the bound, in place, when
    the module next runs or becomes a model (projected gradient descent). So is one that its 8-bit weights have outgrown, so
    that no processor saturates (`Config.overflow_fix`). See `groups` for learning rates that suit scales.

    Zero points are buffers, int32, so that whatever carries the parameters from one module to another (`state_dict`,
    DistributedDataParallel) carries them too; the graph computes with what they hold.

    Attributes:
        kinds: "weight", "scale" or "other" (biases, shifts) for each parameter, by the names of `named_parameters`: for
            groups of different learning rate or weight decay.

    Example:
        ```python
        module = onnxqat.torch.as_module(qdq)
        logits = module(torch.zeros(8, 3, 224, 224))
        logits.sum().backward()
        ```
    """

    def __init__(self, qdq: ir.Model, threads: int) -> None:
        super().__init__()
        self._function = Function(qdq, threads)
        layout, initial = self._function.layout, self._function.initial
        self._signature = Signature.of(qdq, ())
        self._names: dict[str, str] = {}
        self.kinds: dict[str, Kind] = {}
        self._scales: dict[str, slice] = {}
        # Not in `state_dict`, as they are not what is trained; data parallelism takes them from the first process all the same.
        for name, bound in zip(("_lowest", "_highest"), scale_bounds(layout, initial), strict=True):
            self.register_buffer(name, torch.from_numpy(bound), persistent=False)
        for parameter in layout.parameters:
            name = _register(self, parameter.name, torch.from_numpy(parameter.view(initial).copy()))
            self._names[name], self.kinds[name] = parameter.name, parameter.kind
            if parameter.kind == "scale":
                begin = parameter.offset - layout.bounds["scale"][0]
                self._scales[name] = slice(begin, begin + parameter.size)
        self._buffer_names = {
            _register(self, name, torch.from_numpy(array.copy()), buffer=True): name
            for name, array in self._function.zero_points.items()
        }

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Runs the graph.

        Raises:
            InputError: a tensor does not fit the model, or is not on the CPU; a parameter is not float32.
            UnsupportedModelError: a gradient is asked for that a node does not let pass; the message names all of them.
        """
        parameters = {self._names[name]: parameter for name, parameter in self.named_parameters()}
        tensors = {**self._given(inputs, named), **parameters}
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu" or (name in parameters and tensor.dtype != torch.float32):
                raise InputError(
                    f"tensor {name!r}: is {tensor.dtype} on {tensor.device}, the graph takes float32 on the CPU; "
                    "call .cpu().float() on the module and its inputs"
                )
        self._project()
        function = self._at_zero_points()
        wrt = frozenset(name for name, tensor in tensors.items() if tensor.requires_grad)
        if wrt and torch.is_grad_enabled():
            computed = _Run.apply(function, wrt, list(tensors), *tensors.values())
            outputs = dict(zip(function.computed, computed, strict=True))
        else:
            found = function.evaluate({name: _value(tensor) for name, tensor in tensors.items()})
            outputs = {name: _tensor(value) for name, value in found.items()}
        known = {
            **{name: torch.from_numpy(array) for name, array in function.fixed.items()},
            **tensors,
            **outputs,
        }
        results = tuple(known[name] for name in function.outputs)
        return results[0] if len(results) == 1 else results

    def groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: decay only for weights, and for each scale a learning rate relative to its size.

        Adam moves every number by about the learning rate in a step. Of a weight of 0.3 that is little; of a scale of 0.002 it
        may be all. So each scale's rate is `lr` times what the scale is now, and the steps are relative ones, as in `Trainer`.

        Args:
            lr: learning rate of weights and biases; relative step of scales.
            weight_decay: of weights.
        """
        plain = {
            kind: [p for name, p in self.named_parameters() if self.kinds[name] == kind] for kind in ("weight", "other")
        }
        scales = [p for name, p in self.named_parameters() if self.kinds[name] == "scale"]
        return [
            {"params": plain["weight"], "lr": lr, "weight_decay": weight_decay},
            {"params": plain["other"], "lr": lr, "weight_decay": 0.0},
            *({"params": [p], "lr": lr * float(p.detach().mean()), "weight_decay": 0.0} for p in scales),
        ]

    def _given(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        names = list(self._signature.inputs)
        if len(inputs) > len(names):
            raise InputError(f"module: {len(inputs)} inputs given; the model takes {', '.join(names)}")
        given = {**dict(zip(names, inputs, strict=False)), **named}
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"input {name!r}: is a {type(tensor).__name__}; give tensors")
        arrays = check_batch(given, self._signature)
        return {name: tensor.to(torch.from_numpy(arrays[name]).dtype) for name, tensor in given.items()}

    def _at_zero_points(self) -> Function:
        """Returns the function at the zero points that the buffers hold, rebuilt where these have changed."""
        buffers = dict(self.named_buffers())
        held = {name: buffers[key].cpu().numpy() for key, name in self._buffer_names.items()}
        if any(not np.array_equal(held[name], array) for name, array in self._function.zero_points.items()):
            self._function = self._function.with_zero_points(held)
        return self._function

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Refuses a float model's state where a normalization was folded into this one's weights: they would not fit."""
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        given = {
            self._names[key]: state_dict[f"{prefix}{key}"].detach().cpu().numpy() for key in keys if key in self._names
        }
        function, scales = self._function, [self._names[key] for key in self._scales]
        initial = function.layout.named(function.initial)
        reason = reason_to_refuse(keys, given, initial, function.folded, scales)
        if reason is not None:
            raise InputError(
                f"state: is a float model's, whose normalizations are folded into the weights here ({reason}); load it into the "
                "float model, export that, and insert quantizers again"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _project(self) -> None:
        """Clips scales to their bounds in place; touches no other, as PyTorch counts changes."""
        parameters = dict(self.named_parameters())
        lowest, highest = (bound.cpu().numpy() for bound in (self._lowest, self._highest))
        for name, part in self._scales.items():
            array = parameters[name].detach().cpu().numpy()
            low, high = (bound[part].reshape(array.shape) for bound in (lowest, highest))
            if (array < low).any() or (array > high).any():
                _assign(parameters[name], np.clip(array, low, high))
        initializers = {self._names[name]: parameter for name, parameter in parameters.items()}
        arrays = {name: parameter.detach().cpu().numpy() for name, parameter in initializers.items()}
        for name, raised in self._function.safety.outgrown(arrays):
            _assign(initializers[name], raised)

    def _model(self) -> onnx.ModelProto:
        self._project()
        arrays = {}
        for name, tensor in self.named_parameters():
            array = tensor.detach().cpu().float().numpy()
            if not np.isfinite(array).all():
                raise InputError(f"parameter {name!r}: holds NaN or infinity; go back to an earlier state")
            arrays[self._names[name]] = array
        return self._at_zero_points().model(arrays)


class _Run(torch.autograd.Function):  # type: ignore[misc]
    """One run of the forward half, and of the backward half when PyTorch asks for it."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, wrt: frozenset[str], names: list[str], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        ctx.function, ctx.wrt, ctx.names, ctx.halves = function, wrt, names, function.halves(wrt)
        results = ctx.halves.forward({name: _value(tensor) for name, tensor in given.items()})
        known = {**given, **{name: _tensor(value) for name, value in results.items()}}
        ctx.saved = [name for name in ctx.halves.backward.inputs if name in known]
        # PyTorch notices when one of them changes before the backward pass, and lets go of them after it.
        ctx.save_for_backward(*(known[name] for name in ctx.saved))
        ctx.mark_non_differentiable(*(known[n] for n in function.computed if n not in function.differentiable))
        return tuple(known[name] for name in function.computed)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outputs = dict(zip(ctx.function.computed, cotangents, strict=True))
        given = {cotangent(name): outputs[name] for name in ctx.function.differentiable}
        given |= dict(zip(ctx.saved, ctx.saved_tensors, strict=True))
        results = ctx.halves.backward({name: _value(tensor) for name, tensor in given.items()})
        gradients = [_tensor(results[gradient(name)]) if name in ctx.wrt else None for name in ctx.names]
        return None, None, None, *gradients


def _assign(parameter: torch.nn.Parameter, array: NDArray[np.float32]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.asarray(array)))


def _value(tensor: torch.Tensor) -> Value:
    """The tensor as ONNX Runtime's value, in the same memory where that is contiguous."""
    return as_value(tensor.detach().numpy())


def _tensor(value: Value) -> torch.Tensor:
    """ONNX Runtime's value as a tensor in the same memory."""
    tensor = torch.from_dlpack(dlpack(value))
    # DLPack as ONNX Runtime 1.19 writes it has no booleans.
    return tensor.view(torch.bool) if value.data_type() == "tensor(bool)" else tensor


def _register(root: torch.nn.Module, name: str, tensor: torch.Tensor, *, buffer: bool = False) -> str:
    """Adds a parameter or buffer under an initializer's name, whose dots make a hierarchy as PyTorch's do; returns its name.

    A part that a module cannot hold, empty or taken by something else, gets a trailing underscore.
    """
    owner, path = root, []
    *scopes, leaf = name.split(".")
    for scope in scopes:
        scope = _free(owner, scope, _Scope)
        if not hasattr(owner, scope):
            owner.add_module(scope, _Scope())
        owner = getattr(owner, scope)
        path.append(scope)
    leaf = _free(owner, leaf)
    if buffer:
        owner.register_buffer(leaf, tensor)
    else:
        owner.register_parameter(leaf, torch.nn.Parameter(tensor))
    return ".".join([*path, leaf])


def _free(owner: torch.nn.Module, name: str, *allowed: type) -> str:
    """The name with as many underscores as it takes to be free, or to be that of an allowed kind of thing."""
    while not name or (hasattr(owner, name) and not isinstance(getattr(owner, name), allowed)):
        name += "_"
    return name


class _Scope(torch.nn.Module):  # type: ignore[misc]
    """Holds the parameters whose names begin alike."""
