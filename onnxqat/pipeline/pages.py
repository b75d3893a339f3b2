"""Pages of whole runs: the report with its layers, its curves and what led to it."""

from __future__ import annotations

from onnxqat import __version__
from onnxqat.callbacks import History
from onnxqat.data import sources as datasets
from onnxqat.graph import io
from onnxqat.page import render
from onnxqat.pipeline import Outcome
from onnxqat.pipeline.request import Data, Judge, Training
from onnxqat.search.layers import Layers
from onnxqat.search.layers.measure import layers
from onnxqat.training.trainer import Trainer
from onnxqat.verification.report import Report


def layers_of_run(outcome: Outcome, data: Data, judge: Judge) -> Layers:
    """The layers of a run's models, on the data that it is judged on."""
    return layers(
        outcome.float_model,
        outcome.trained,
        data.read(data.test or data.validation),
        outcome.deployed,
        initial=outcome.inserted,
        runtime=judge.runtime,
        interpreter=judge.interpreter,
        sample_axis=judge.labelling.sample_axis,
    )


def of_training(qdq: io.ModelLike, trained: Trainer, data: Data, training: Training, history: History) -> str:
    """The page of the train stage: curves, and layers against the model without quantizers that it began with."""
    judged = data.read(data.validation)
    found = layers(None, trained.model(), judged, initial=qdq, sample_axis=training.labelling.sample_axis)
    return render(f"Training, onnxqat {__version__}", [history, found])


def of_verification(
    report: Report,
    models: tuple[io.ModelLike, io.ModelLike],
    float_model: io.ModelLike | None,
    data: datasets.Source,
    judge: Judge,
) -> str:
    """The page of the verify stage."""
    trained, deployed = models
    found = layers(
        float_model,
        trained,
        data,
        deployed,
        runtime=judge.runtime,
        interpreter=judge.interpreter,
        sample_axis=judge.labelling.sample_axis,
    )
    return report.to_html(found)
