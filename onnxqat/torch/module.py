"""The module whose parameters are a Q/DQ model's initializers, and whose call is its graph."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from onnxqat.data import sources
from onnxqat.data.batch import Batch, Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.structure import DROPOUT, OUTPUTS
from onnxqat.torch.graph import Graph, as_array, home
from onnxqat.torch.operator import bound, run
from onnxqat.torch.scopes import register
from onnxqat.training.execution import Execution
from onnxqat.training.resume.float_state import reason_to_refuse
from onnxqat.training.statistics import Statistics, statistics
from onnxqat.training.training_graph.parameters import Kind
from onnxqat.training.wrapped import EPOCH, QuantizationSchedule, Wrapped


class QdqModule(torch.nn.Module):  # type: ignore[misc]
    """A Q/DQ model whose initializers are PyTorch's; call it with tensors in the model's input order, or by name.

    It returns what the exported module returned, a dict of tensors, say; of a model that does not tell, a tensor, or a tuple in
    the model's order where there are several outputs. Gradients are those of
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

    def __init__(self, qdq: ir.Model, execution: Execution) -> None:
        super().__init__()
        self._graph = Graph(Wrapped(qdq, execution), Signature.of(qdq, ()))
        self._home = home(execution.device)
        self._first = whole = self._graph.wrapped.whole
        self._structure = json.loads(qdq.metadata_props.get(OUTPUTS, "null"))
        self._dropout = json.loads(qdq.metadata_props.get(DROPOUT, "[]"))
        self._outputs, self._computed = whole.outputs, whole.computed
        self._fixed = {name: torch.from_numpy(array.copy()) for name, array in whole.fixed.items()}
        dtypes = {name: dtype for name, (dtype, _) in self._graph.signature.inputs.items()}
        self._dtypes = {name: torch.from_numpy(np.zeros(0, dtype)).dtype for name, dtype in dtypes.items()}
        self._names: dict[str, str] = {}
        self.kinds: dict[str, Kind] = {}
        # Not in `state_dict`, as they are not what is trained; data parallelism takes them from the first process all the same.
        for name, values in zip(("_lowest", "_highest"), self._graph.wrapped.bounds, strict=True):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        for parameter in whole.layout.parameters:
            # of one axis at least, as FullyShardedDataParallel asks for
            array = np.atleast_1d(parameter.view(whole.initial)).copy()
            name = register(self, parameter.name, torch.from_numpy(array))
            self._names[name], self.kinds[name] = parameter.name, parameter.kind
        self._buffer_names = {
            register(self, name, torch.from_numpy(array.copy()), buffer=True): name
            for name, array in whole.zero_points.items()
        }

    @property
    def schedule(self) -> QuantizationSchedule:
        """Start epochs of quantization (`Config.weight_start_epoch`, …): call its `epoch_step()` after each epoch."""
        return self._graph.wrapped.schedule

    @property
    def _stage(self) -> str:
        stage = self.schedule.stage
        return " ".join(["activations"] * stage.activations + ["weights"] * stage.weights)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Runs the graph.

        Raises:
            InputError: a tensor does not fit the model, or a parameter is not float32.
            UnsupportedModelError: a gradient is asked for that a node does not let pass; the message names all of them.
        """
        given = self._given(inputs, named)
        parameters = {self._names[name]: parameter for name, parameter in self.named_parameters()}
        for name, tensor in {**given, **parameters}.items():
            if tensor.device.type == "meta" or (name in parameters and tensor.dtype != torch.float32):
                raise InputError(
                    f"tensor {name!r}: is {tensor.dtype} on {tensor.device}, the graph takes float32 that holds numbers; "
                    "call .float() on the module, or load its state"
                )
        moved = {name: tensor.to(self._home) for name, tensor in {**given, **parameters}.items()}
        for name in self._bound(parameters, moved):
            moved[name] = parameters[name].to(self._home)
        buffers = dict(self.named_buffers())
        known = {name: tensor.reshape(self._graph.parameters.get(name, tensor.shape)) for name, tensor in moved.items()}
        known |= {name: buffers[key] for key, name in self._buffer_names.items()}
        tensors = [known[name] for name in self._graph.tensors]
        differentiated = torch.is_grad_enabled()
        asked = [differentiated and tensor.requires_grad for tensor in tensors]
        found = run(self._graph.name, self._stage, asked, tensors)
        known.update({name: tensor.clone() for name, tensor in self._fixed.items()})
        known.update(zip(self._computed, found, strict=False))  # behind the outputs stands what the gradient reads
        device = next((tensor.device for tensor in given.values()), self._home)
        results = tuple(known[name].to(device) for name in self._outputs)
        if isinstance(self._structure, list):
            return dict(zip(self._structure, results, strict=True))
        return results[0] if self._structure is None and len(results) == 1 else results

    def train(self, mode: bool = True) -> QdqModule:
        """See `torch.nn.Module.train`; warns once where the float module had dropout, which the graph does not have."""
        if mode and self._dropout:
            named = ", ".join(map(repr, self._dropout))
            self._dropout = []
            warnings.warn(
                f"module: dropout of {named} is gone in the ONNX graph, in training mode too; regularize by weight decay",
                stacklevel=2,
            )
        super().train(mode)
        return self

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
        names = list(self._dtypes)
        if len(inputs) > len(names):
            raise InputError(f"module: {len(inputs)} inputs given; the model takes {', '.join(names)}")
        given = {**dict(zip(names, inputs, strict=False)), **named}
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"input {name!r}: is a {type(tensor).__name__}; give tensors")
        signature = self._graph.signature
        given = {name: tensor for name, tensor in given.items() if name not in signature.fixed}
        if set(given) != set(names):
            check_batch(given, signature)  # says which is missing or unknown
        return {name: _widened(given[name], dtype) for name, dtype in self._dtypes.items()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Saves the epoch too where quantizers begin later."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.schedule.is_staged:
            destination[prefix + EPOCH] = torch.tensor(self.schedule.epoch)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Refuses a float model's state where a normalization was folded into this one's weights: they would not fit."""
        epoch = state_dict.pop(prefix + EPOCH, None)
        if epoch is not None:
            self.schedule.epoch_step(int(epoch))
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        given = {
            self._names[key]: state_dict[f"{prefix}{key}"].detach().cpu().numpy() for key in keys if key in self._names
        }
        whole, scales = self._graph.wrapped.whole, self._graph.scales_and_others[0]
        initial = whole.layout.named(whole.initial)
        reason = reason_to_refuse(keys, given, initial, whole.folded, scales)
        if reason is not None:
            raise InputError(
                f"state: is a float model's, whose normalizations are folded into the weights here ({reason}); load it into the "
                "float model, export that, and insert quantizers again"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _bound(self, parameters: Mapping[str, torch.Tensor], copies: Mapping[str, torch.Tensor]) -> list[str]:
        """Clips scales to their bounds, in place; touches no others, unless compiled: PyTorch counts changes.

        Args:
            parameters: all parameters.
            copies: the same where they are judged.

        Returns:
            Names of those that may have changed.
        """
        buffers = dict(self.named_buffers())
        bounds = [buffers["_lowest"], buffers["_highest"]]
        with torch.no_grad():
            if torch.compiler.is_compiling():
                scales, others = ([parameters[name] for name in names] for names in self._graph.scales_and_others)
                bound(self._graph.name, scales, others, bounds)
                return self._graph.scales_and_others[0]
            changed = self._graph.out_of_bounds(copies, bounds)
            for name, array in changed:
                parameters[name].copy_(array)
            return [name for name, _ in changed]

    def _model(self) -> onnx.ModelProto:
        parameters = {self._names[name]: parameter for name, parameter in self.named_parameters()}
        self._bound(parameters, parameters)
        wrapped, buffers, arrays = self._graph.wrapped, dict(self.named_buffers()), {}
        wrapped.set_zero_points({name: buffers[key].cpu().numpy() for key, name in self._buffer_names.items()})
        for name, tensor in self.named_parameters():
            array = as_array(tensor.cpu().float())
            if not np.isfinite(array).all():
                raise InputError(f"parameter {name!r}: holds NaN or infinity; go back to an earlier state")
            arrays[self._names[name]] = array.reshape(self._graph.parameters[self._names[name]])
        model = io.load(wrapped.whole.model(arrays))
        self.schedule.note(model)
        return ir.to_proto(model)


def _widened(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in the model's type where that loses nothing: of half precision, say. The graph refuses other types."""
    wider = tensor.is_floating_point() and torch.promote_types(tensor.dtype, dtype) == dtype
    return tensor.to(dtype) if wider else tensor
