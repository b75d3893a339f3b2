"""Evaluates the model in training, as it stands, on labelled data."""

from __future__ import annotations

import numpy as np

from onnxqat.data.sources import Batches
from onnxqat.training.callbacks.ready_made import Metrics
from onnxqat.training.loop.steps import Steps
from onnxqat.training.training_graph.losses import LOSS


def evaluate(steps: Steps, batches: Batches) -> Metrics:
    """Mean loss over the data, and accuracy (0 to 1) where labels say which answers are right; see `Trainer.evaluate`."""
    steps.hold()  # parameters may have been changed from outside
    sums = np.zeros(4)  # of losses and their weights, of hits and decisions
    for index, batch in enumerate(batches):
        if not steps.workers.takes(index):
            continue
        feeds = steps.feeds(batch)
        first, *_, loss = steps.engine.evaluate(feeds, [*steps.graph.outputs, LOSS])
        weight, hits = steps.feeds.counted(batch), steps.feeds.hits(first, feeds)
        sums += float(loss) * weight, weight, hits.sum(), hits.size
    steps.workers.sum(sums)
    metrics = {"loss": float(sums[0] / sums[1])}
    if sums[3]:
        metrics["accuracy"] = float(sums[2] / sums[3])
    return metrics
