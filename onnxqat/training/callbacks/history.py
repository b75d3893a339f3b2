"""Curves of a run, kept in memory for its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxqat.page import Chart, Section, framed, render
from onnxqat.training.callbacks.ready_made import Callback, Metrics

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

#: Steps that are kept; of longer runs every second, fourth, … is.
MOST = 2000


class History(Callback):
    """Keeps loss and learning rate of steps and the metrics of epochs; a part of a report's page.

    Attributes:
        steps: number, loss and learning rate of each step; of a long run, of as many evenly spaced ones as a picture shows.
        epochs: number of the last step of each epoch, and its metrics.

    Example:
        ```python
        history = onnxqat.callbacks.History()
        trainer.fit(batches, epochs=3, validation=others, callbacks=[history])
        Path("curves.html").write_text(history.to_html())
        ```
    """

    main_only = True

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []
        self.epochs: list[tuple[int, Metrics]] = []
        self._stride = 1

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Keeps loss and rate."""
        step = trainer.schedule.position.step
        if step % self._stride:
            return
        self.steps.append((step, loss, trainer.optimizer.lr * trainer.schedule.factor))
        if len(self.steps) > MOST:
            self._stride *= 2
            self.steps = [kept for kept in self.steps if kept[0] % self._stride == 0]

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Keeps the metrics."""
        self.epochs.append((trainer.schedule.position.step, dict(metrics)))

    def state(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"steps": self.steps, "epochs": self.epochs, "stride": self._stride}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self.steps = [(step, loss, rate) for step, loss, rate in state["steps"]]
        self.epochs, self._stride = [(step, metrics) for step, metrics in state["epochs"]], state["stride"]

    def sections(self) -> Sequence[Section]:
        """The part of a page: curves of loss, of metrics and of the rate; none without steps."""
        if not self.steps:
            return ()
        number, loss, rate = (list(column) for column in zip(*self.steps, strict=True))
        losses = [_line("loss of a step", number, loss, opacity=0.5), *self._curves("loss")]
        charts = [Chart("loss", losses, _titles("step", "loss"))]
        metrics = self._curves("")
        if metrics:
            charts.append(Chart("metrics of epochs", metrics, _titles("step", "")))
        charts.append(Chart("learning rate", [_line("rate", number, rate)], _titles("step", "rate")))
        return [Section("curves", "Curves", charts)]

    def to_html(self) -> str:
        """A page of its own; see `Report.to_html`."""
        return render("Training", [self])

    def _repr_html_(self) -> str:
        return framed(self.to_html())

    def _curves(self, kind: str) -> list[dict[str, Any]]:
        """Metrics of epochs: the losses, or with "" all that are none."""
        names = dict.fromkeys(name for _, metrics in self.epochs for name in metrics)
        chosen = [name for name in names if name.endswith("loss") == bool(kind)]
        rows = {name: [(step, metrics[name]) for step, metrics in self.epochs if name in metrics] for name in chosen}
        return [
            _line(name.replace("_", " "), *map(list, zip(*row, strict=True)), mode="lines+markers")
            for name, row in rows.items()
        ]


def _line(name: str, x: Iterable[Any], y: Iterable[Any], **settings: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), **settings}


def _titles(x: str, y: str) -> Mapping[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
