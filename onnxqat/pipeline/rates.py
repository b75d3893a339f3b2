"""The learning rate, found by a range test (Smith 2017): it grows with every step, and the loss says where it is too high."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np

from onnxqat.data import sources
from onnxqat.errors import InputError, TrainingError
from onnxqat.terminal.progress import track
from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)

#: Rates of the test, from the first to the last step.
LOWEST, HIGHEST, STEPS = 1e-6, 1e-1, 50
#: Batches that are held back to judge by, as far as there are others.
HELD = 2
#: The test is over where the loss is this many times the lowest.
DIVERGED = 4.0
#: Share of the best rate of the test that is taken: a whole run takes more steps at it than the test did.
SHARE = 1 / 3


def found_rate(probe: Trainer, batches: sources.Batches, seed: int = 0) -> float:
    """The learning rate for a training, by a test that ends with the parameters of `probe` spoiled.

    Each step is taken on the next batch, at a rate that grows by the same factor; after each, the loss on held-back batches is
    taken, and a mean over three steps smooths it. The same model, data and seed give the same rate.

    Args:
        probe: a trainer of the model with a constant schedule.
        batches: the data to train on.
        seed: seed of its order.

    Raises:
        InputError: there is a single batch, so that none can be held back, or the data can be read once.
    """
    batches.check_epochs(2, "data for the test of rates, which comes before training")
    read = list(itertools.islice(batches.epoch(0, seed), HELD + STEPS))
    if len(read) < 2:
        raise InputError("rate auto: the data is a single batch, and the test holds one back; use smaller batches")
    held, taken = read[: min(HELD, len(read) - 1)], itertools.cycle(read[min(HELD, len(read) - 1) :])
    rates, losses = np.geomspace(LOWEST, HIGHEST, STEPS), [probe.evaluate(held)["loss"]]
    for rate in track(rates, "rate"):
        probe.optimizer = replace(probe.optimizer, lr=float(rate))  # type: ignore[type-var]
        try:
            probe.step(next(taken))
            losses.append(probe.evaluate(held)["loss"])
        except TrainingError:
            break
        if not np.isfinite(losses[-1]) or losses[-1] > DIVERGED * min(losses):
            break
    smooth = np.convolve(np.pad(losses[1:] or losses, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    best = float(rates[int(np.argmin(smooth))]) if smooth.min() < losses[0] else LOWEST / SHARE
    rate = float(f"{SHARE * best:.1e}")
    log.info(
        "rate: %g, by %d steps of growing rates; loss on held-back batches was lowest at %.1e", rate, len(smooth), best
    )
    return rate
