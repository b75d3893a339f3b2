"""Evaluates the model in training, as it stands, on labelled data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxqat.data.batch import Batch
from onnxqat.errors import InputError
from onnxqat.metrics.table import Metric, Tally
from onnxqat.training.callbacks.ready_made import Metrics
from onnxqat.training.loop.steps import Steps
from onnxqat.training.training_graph.losses import LOSS


def evaluate(steps: Steps, batches: Iterable[Batch], metric: Metric | None = None) -> Metrics:
    """Mean loss over the data, accuracy (0 to 1) where labels say which answers are right, and the metric that is given.

    Raises:
        InputError: there are no labels for the metric.
    """
    tally = None if metric is None else Tally(metric)
    steps.hold()  # parameters may have been changed from outside
    sums = np.zeros(4)  # of losses and their weights, of hits and decisions
    for index, batch in enumerate(batches):
        taken = steps.workers.takes(index)
        if not taken and tally is None:
            continue
        feeds = steps.feeds(batch)
        first, *_, loss = steps.engine.evaluate(feeds, [*steps.graph.outputs, LOSS])
        if tally is not None:
            if "label" not in batch:
                raise InputError(
                    f"metric {tally.metric.name!r}: the data has no labels to judge by; add them as 'label'"
                )
            tally.add(first, batch["label"])  # by every process, since statistics of some metrics do not add up
        if not taken:
            continue
        weight, hits = steps.feeds.counted(batch), steps.feeds.hits(first, feeds)
        sums += float(loss) * weight, weight, hits.sum(), hits.size
    steps.workers.sum(sums)
    metrics = {"loss": float(sums[0] / sums[1])}
    if sums[3]:
        metrics["accuracy"] = float(sums[2] / sums[3])
    if tally is not None and tally.score is not None:
        metrics[tally.metric.name] = tally.score
    return metrics
