"""The module whose parameters are a Q/DQ model's initializers, and whose call is its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.data.batch import Batch, Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.torch.run import run
from onnxqat.torch.scopes import register
from onnxqat.training.resume.float_state import reason_to_refuse
from onnxqat.training.statistics import Statistics, statistics
from onnxqat.training.training_graph.parameters import Kind
from onnxqat.training.wrapped import QuantizationSchedule, Wrapped


class QdqModule(torch.nn.Module):  # type: ignore[misc]
    """A Q/DQ model whose initializers are PyTorch's; call it with tensors in the model's input order, or by name.

    It returns a tensor, or a tuple in the model's order where there are several outputs. Gradients are those of
    `onnxqat.Trainer.gradients`, for inputs that require one too; a parameter whose `requires_grad` is False is left out of the
    backward graph. Where no gradient is asked for (`torch.no_grad`), only the forward graph runs. Training and evaluation
    mode are the same.

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
        self._wrapped = Wrapped(qdq, threads)
        self._first = whole = self._wrapped.whole
        self._signature = Signature.of(qdq, ())
        self._names: dict[str, str] = {}
        self.kinds: dict[str, Kind] = {}
        # Not in `state_dict`, as they are not what is trained; data parallelism takes them from the first process all the same.
        for name, bound in zip(("_lowest", "_highest"), self._wrapped.bounds, strict=True):
            self.register_buffer(name, torch.from_numpy(bound), persistent=False)
        for parameter in whole.layout.parameters:
            name = register(self, parameter.name, torch.from_numpy(parameter.view(whole.initial).copy()))
            self._names[name], self.kinds[name] = parameter.name, parameter.kind
        self._buffer_names = {
            register(self, name, torch.from_numpy(array.copy()), buffer=True): name
            for name, array in whole.zero_points.items()
        }

    @property
    def schedule(self) -> QuantizationSchedule:
        """Start epochs of quantization (`Config.weight_start_epoch`, …): call its `epoch_step()` after each epoch."""
        return self._wrapped.schedule

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
        outputs = run(self._wrapped, tensors)
        whole = self._wrapped.whole
        known = {**{name: torch.from_numpy(array) for name, array in whole.fixed.items()}, **tensors, **outputs}
        results = tuple(known[name] for name in whole.outputs)
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

    def statistics(
        self, batches: sources.Source | None = None, *, transform: sources.Transform | None = None
    ) -> Statistics:
        """Settings and scales of quantizers, shares of clipped values, and drift since the module was made; prints as tables.

        Args:
            batches: data, labels not needed, to count clipped activations on.
            transform: turns an item of the loader into a batch.
        """
        seen: Iterable[Batch] = []
        if batches is not None:
            checked = sources.batches(batches, self._first.qdq, transform=transform)
            seen = replace(checked, signature=replace(checked.signature, needs_labels=False))
        return statistics(self._first.qdq, io.load(self._model()), seen)

    def fold(self) -> onnx.ModelProto:
        """The deployed model: `onnxqat.fold` of `onnxqat.torch.to_model`."""
        return fold(self._model())

    def structure(self) -> torch.Tensor:
        """The model that the module was made of, as bytes: `as_module` makes the module again, in whatever process.

        Beside `state_dict()` in a checkpoint it takes the place of the float model and the calibration data.
        """
        return torch.frombuffer(bytearray(io.to_proto(self._first.qdq).SerializeToString()), dtype=torch.uint8)

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

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Refuses a float model's state where a normalization was folded into this one's weights: they would not fit."""
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        given = {
            self._names[key]: state_dict[f"{prefix}{key}"].detach().cpu().numpy() for key in keys if key in self._names
        }
        whole, scales = self._wrapped.whole, [self._names[name] for name, kind in self.kinds.items() if kind == "scale"]
        initial = whole.layout.named(whole.initial)
        reason = reason_to_refuse(keys, given, initial, whole.folded, scales)
        if reason is not None:
            raise InputError(
                f"state: is a float model's, whose normalizations are folded into the weights here ({reason}); load it into the "
                "float model, export that, and insert quantizers again"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _project(self) -> None:
        """Sets the graph to the zero points held, and clips scales to their bounds; touches no others: PyTorch counts changes."""
        buffers = dict(self.named_buffers())
        self._wrapped.set_zero_points({name: _array(buffers[key]) for key, name in self._buffer_names.items()})
        self._wrapped.bounds = _array(buffers["_lowest"]), _array(buffers["_highest"])
        initializers = {self._names[name]: parameter for name, parameter in self.named_parameters()}
        arrays = {name: _array(parameter) for name, parameter in initializers.items()}
        with torch.no_grad():
            for name, array in self._wrapped.within_bounds(arrays).items():
                initializers[name].copy_(torch.from_numpy(np.asarray(array)))

    def _model(self) -> onnx.ModelProto:
        self._project()
        arrays = {}
        for name, tensor in self.named_parameters():
            array = tensor.detach().cpu().float().numpy()
            if not np.isfinite(array).all():
                raise InputError(f"parameter {name!r}: holds NaN or infinity; go back to an earlier state")
            arrays[self._names[name]] = array
        model = io.load(self._wrapped.whole.model(arrays))
        self.schedule.note(model)
        return ir.to_proto(model)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
