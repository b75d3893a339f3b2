"""Numbers of a run in experiment trackers: MLflow and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxqat.errors import MissingExtraError
from onnxqat.training.callbacks.ready_made import Callback, Metrics

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer


class _Tracker(Callback):
    """Sends loss and learning rate of each step, and the metrics of each epoch."""

    main_only = True

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Sends loss and rate."""
        rate = trainer.optimizer.lr * trainer.schedule.factor
        self._send({"train/loss": loss, "train/lr": rate}, trainer.schedule.position.step)

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Sends the epoch's numbers."""
        numbers = {f"epoch/{name}": number for name, number in metrics.items()}
        self._send(numbers, trainer.schedule.position.step)

    def _send(self, numbers: Mapping[str, float], step: int) -> None:
        raise NotImplementedError


class MLflow(_Tracker):
    """Logs a run to MLflow: into the active run, or else into one of its own, which it ends.

    Args:
        tracking_uri: where MLflow keeps runs; None: as MLflow is set up.
        experiment: name of the experiment; None: the active one.
        name: name of the run; None: MLflow chooses one.

    Example:
        ```python
        trainer.fit(batches, epochs=3, callbacks=[onnxqat.callbacks.MLflow(experiment="int8")])
        ```
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, name: str | None = None) -> None:
        try:
            import mlflow
        except ModuleNotFoundError as error:
            raise MissingExtraError("mlflow is not installed; run `pip install 'onnxqat[mlflow]'`") from error
        self._mlflow, self._name, self._own = mlflow, name, False
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        if experiment is not None:
            mlflow.set_experiment(experiment)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Starts a run where none is active."""
        self._own = self._mlflow.active_run() is None
        if self._own:
            self._mlflow.start_run(run_name=self._name)

    def on_train_end(self, trainer: Trainer) -> None:
        """Ends a run of its own."""
        if self._own:
            self._mlflow.end_run()

    def _send(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)


class WandB(_Tracker):
    """Logs a run to Weights & Biases: into the active run, or else into one of its own, which it finishes.

    Args:
        project: name of the project; None: as wandb is set up.
        settings: further arguments of `wandb.init`, such as `mode="offline"` or `dir`.

    Example:
        ```python
        trainer.fit(batches, epochs=3, callbacks=[onnxqat.callbacks.WandB("int8", mode="offline")])
        ```
    """

    def __init__(self, project: str | None = None, **settings: Any) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise MissingExtraError("wandb is not installed; run `pip install 'onnxqat[wandb]'`") from error
        self._wandb, self._settings, self._own = wandb, {"project": project, **settings}, False
        self._run: Any = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Starts a run where none is active."""
        self._own = self._wandb.run is None
        self._run = self._wandb.init(**self._settings) if self._own else self._wandb.run

    def on_train_end(self, trainer: Trainer) -> None:
        """Finishes a run of its own."""
        if self._own and self._run is not None:
            self._run.finish()
            self._run = None

    def _send(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)
