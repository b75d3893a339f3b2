"""A Q/DQ model inside another framework's training loop: its function in the stage that the loop has reached."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.without import without_quantizers
from onnxqat.training.execution import Execution
from onnxqat.training.loop.staging import Stage, StartEpochs
from onnxqat.training.optimize.update import scale_bounds
from onnxqat.training.running.values import Floats
from onnxqat.training.training_graph.halves import Function

#: Key of the epoch beside the parameters that a framework saves: where quantizers begin later, what is restored must quantize
#: what the saved one did.
EPOCH = "schedule_epoch"


class QuantizationSchedule:
    """Start epochs of quantization, stepped by a loop that is not `Trainer`'s: once at the end of each epoch.

    Without start epochs (`Config.weight_start_epoch`, `Config.activation_start_epoch`) all quantizers work from the first step,
    and stepping changes nothing.

    Args:
        starts: epochs at which quantization begins.

    Attributes:
        epoch: the epoch that is being trained, from 0.
        stage: kinds that are quantized now.

    Example:
        ```python
        for epoch in range(10):
            for batch in batches:
                ...
            module.schedule.epoch_step()
        ```
    """

    def __init__(self, starts: StartEpochs) -> None:
        self._starts = starts
        self.epoch = 0
        self.stage = starts.at(0)

    def epoch_step(self, epoch: int | None = None) -> None:
        """Begins the next epoch, or the one given.

        Raises:
            InputError: it is negative.
        """
        reached = self.epoch + 1 if epoch is None else epoch
        if reached < 0:
            raise InputError(f"epoch: is {reached}; count from 0")
        self.epoch, self.stage = reached, self._starts.at(reached)

    def state_dict(self) -> dict[str, int]:
        """The state for a checkpoint."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores what `state_dict` gave."""
        self.epoch_step(state["epoch"])

    @property
    def is_staged(self) -> bool:
        """Whether some quantizers begin to work after the first epoch."""
        return self._starts != StartEpochs()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that the epochs pass through, in order."""
        epochs = sorted({0, self._starts.activations, self._starts.weights})
        return tuple(self._starts.at(epoch) for epoch in epochs)

    def note(self, model: ir.Model) -> None:
        """Leaves in a model how many epochs are still to go."""
        self._starts.note(model, self.epoch)


class Wrapped:
    """The function of a Q/DQ model at whatever zero points and in whatever stage the framework that holds its arrays is.

    Attributes:
        whole: the function with all quantizers.
        schedule: the stage.
        bounds: lowest and highest value of each scale, in the layout's order.
    """

    def __init__(self, qdq: ir.Model, execution: Execution) -> None:
        self.schedule = QuantizationSchedule(StartEpochs.of(qdq))
        self._set(Function(qdq, execution))

    def _set(self, whole: Function) -> None:
        self.whole = whole
        self._functions = {Stage(): whole}
        self.bounds = scale_bounds(whole.layout, whole.initial)

    def at(self, stage: Stage) -> Function:
        """The function of a stage; scales that are not in use are no parameters of it."""
        if stage not in self._functions:
            model = without_quantizers(self.whole.qdq, stage.leaves_out)
            self._functions[stage] = Function(model, self.whole.execution)
        return self._functions[stage]

    @property
    def current(self) -> Function:
        """The function of the schedule's stage."""
        return self.at(self.schedule.stage)

    def set_zero_points(self, held: Mapping[str, NDArray[np.int32]]) -> None:
        """Rebuilds the functions where the zero points differ from theirs: from another calibration's checkpoint, say.

        Raises:
            InputError: they are not of this model.
        """
        if any(not np.array_equal(held[name], array) for name, array in self.whole.zero_points.items()):
            self._set(self.whole.with_zero_points(held))

    def within_bounds(self, arrays: Mapping[str, Floats]) -> dict[str, Floats]:
        """The parameters that `Trainer` would not leave as they are, by name: scales beyond their bounds, at those bounds.

        Args:
            arrays: values of parameters, by initializer name; of a few, only these are judged.
        """
        changed: dict[str, Floats] = {}
        begin = self.whole.layout.bounds["scale"][0]
        for one in self.whole.layout.parameters:
            if one.kind == "scale" and one.name in arrays:
                part = slice(one.offset - begin, one.offset - begin + one.size)
                low, high = (bound[part].reshape(one.shape) for bound in self.bounds)
                if (arrays[one.name] < low).any() or (arrays[one.name] > high).any():
                    changed[one.name] = np.clip(arrays[one.name], low, high)
        current = {**arrays, **changed}
        for name, raised in self.whole.safety.outgrown(current):
            changed[name] = current[name] = raised  # a bias may raise further what its weight has raised
        return changed
