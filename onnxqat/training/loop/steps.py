"""Steps of training, batch by batch: what `Trainer.step` and `Trainer.fit` have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.distributed import Workers
from onnxqat.errors import TrainingError
from onnxqat.process import interruption
from onnxqat.process.free_memory import free_memory
from onnxqat.runtime.splitting import splitting_of
from onnxqat.training.execution import Execution
from onnxqat.training.health.divergence import LossWatch
from onnxqat.training.health.finite import norm_of, not_finite
from onnxqat.training.loop.feeds import Feeds
from onnxqat.training.loop.staging import Stages
from onnxqat.training.optimize.optimizers import Optimizer
from onnxqat.training.optimize.schedules import Schedule
from onnxqat.training.optimize.update import Updater
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.resume.state import State
from onnxqat.training.running.engine import Engine
from onnxqat.training.training_graph.build import TrainingGraph
from onnxqat.training.training_graph.demand import demand
from onnxqat.training.training_graph.losses import LOSS

log = logging.getLogger(__name__)


class Steps:
    """Takes steps: forward, backward, and an update after every `accumulate` batches.

    Attributes:
        graph: what is trained.
        feeds: prepares batches for it.
        stages: what of it runs quantized at which epoch.
        workers: the processes that share the work.
        accumulate: batches whose gradients make one optimizer step.
        optimizer: the optimizer, whose rate is read at every step.
        engine: runs the graph.
        state: what a run must remember.
        watch: warns where the loss rises.
        last: the last batch of which gradients were taken.
    """

    def __init__(  # noqa: PLR0913  (each is a part of a step)
        self,
        graph: TrainingGraph,
        feeds: Feeds,
        stages: Stages,
        optimizer: Optimizer,
        schedule: Schedule,
        workers: Workers,
        *,
        clip_norm: float | None,
        accumulate: int,
        seed: int,
        execution: Execution,
    ) -> None:
        self.graph, self.feeds, self.workers, self.accumulate = graph, feeds, workers, accumulate
        self.stages, self.optimizer, self._clip_norm = stages, optimizer, clip_norm
        threads, device = execution.threads, execution.device
        splitting = splitting_of(graph.evaluation, feeds.axes(), LOSS) if execution.cuts else None
        _check_room(graph, optimizer, execution)
        self.engine = engine = Engine(
            graph.training,
            graph.evaluation,
            graph.layout,
            graph.initial,
            threads,
            splitting,
            device,
            sparing=execution.twice,
        )
        self._safety = PairSafety(graph.qdq, threads)
        self._update = Updater(
            optimizer, graph.layout, engine.parameters, engine.gradients, threads, self.hold, in_8_bits=execution.twice
        )
        accumulated = np.zeros_like(engine.gradients) if accumulate > 1 else None
        self.state = State(engine.parameters, self._update.moments, schedule, seed, accumulated)
        self.hold()
        self.last: Batch | None = None
        self._recomputes, self._largest, self._on_cpu = graph.twice, 0, execution.device.is_cpu
        self.watch = LossWatch()

    def whole(self) -> AbstractContextManager[None]:
        """Protects its block from interruption: signals wait; of several processes none may keep the others waiting."""
        return interruption.held() if self.workers.size == 1 else nullcontext()

    def hold(self) -> None:
        """Makes the weights pair-safe where `insert` promised it, also while they are not quantized: what ships is."""
        self._safety.hold(self.graph.layout.named(self.engine.parameters))

    def differentiate(self, batch: Batch) -> float:
        """Loss of a batch; its gradients are in the engine. Each process works on its rows, the results are those of all."""
        if self.stages.enter(self.state.schedule.position.epoch, self.engine):
            self.watch = LossWatch()
        self.last = batch
        part, share = self.workers.split(batch, self.feeds.signature())
        if part is not None:
            share = self.feeds.share(part, batch, share)
        if part is None or not share:
            self.engine.results[:] = 0
        else:
            fed = self.feeds(part)
            self._make_room(fed)
            self.engine.step(fed)
        self.workers.mean(self.engine.results, share)
        return self.engine.loss

    def _make_room(self, fed: Mapping[str, NDArray[Any]]) -> None:
        """Chooses, at the first batch and at larger ones, what is kept for the backward pass by the memory that is free."""
        size = sum(array.nbytes for array in fed.values())
        free = free_memory() if size > self._largest and self._on_cpu else None
        self._largest = max(size, self._largest)
        if free is None:
            return
        needed = demand(self.engine.training, fed)
        if needed > free and not self._recomputes:
            log.info("a step would take %s, %s are free: outputs of quantizers are computed again", *_gb(needed, free))
            self._recomputes = True
            self.stages.recompute(self.engine)
            needed = demand(self.engine.training, fed)
        log.debug("a step takes about %s, %s are free", *_gb(needed, free))
        if needed > free:
            log.warning("a step takes about %s, %s are free: if it fails, use smaller batches", *_gb(needed, free))

    def step(self, batch: Batch) -> float:
        """Takes a step on a checked batch; returns the loss before it.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        loss = self.differentiate(batch)
        norm = norm_of(self.engine.gradients)
        if not np.isfinite(loss) or not np.isfinite(norm):
            raise TrainingError(f"step {self.state.schedule.position.step + 1}: {self._why_not_finite(batch)}")
        if self.workers.is_first:
            self.watch.saw(loss, self.optimizer.lr)
        if self.state.accumulated is None:
            self._apply(norm)
        else:
            self.state.add(self.engine.gradients, self.feeds.counted(batch))
            if self.state.summed == self.accumulate:
                self.apply_accumulated()
        return loss

    def apply_accumulated(self) -> None:
        """One optimizer step on the mean of the gradients that no step has used yet, if there are any."""
        if self.state.take_mean(self.engine.gradients):
            self._apply(norm_of(self.engine.gradients))

    def _apply(self, norm: float) -> None:
        """One optimizer step on the gradients in the engine, whose norm is given."""
        limit = self._clip_norm if self._clip_norm is not None else np.inf
        factor = min(1.0, limit / norm) if norm > 0 else 1.0
        schedule = self.state.schedule
        self._update(self.optimizer.lr * schedule.factor, schedule.position.step + 1, factor)
        schedule.step()

    def _why_not_finite(self, batch: Batch) -> str:
        feeds, begun = self.feeds(batch), self.state.has_begun
        (output,) = self.engine.evaluate(feeds, self.graph.outputs[:1])
        masked = self.feeds.masked_label(output, feeds, begun=begun)
        return masked or not_finite(self.engine, self.graph.qdq, feeds, begun=begun)


def _check_room(graph: TrainingGraph, optimizer: Optimizer, execution: Execution) -> None:
    """Warns where parameters, gradients and moments alone take more memory than is free."""
    free, moments = free_memory(), optimizer.moments * (0.25 if execution.twice else 1.0)
    needed = int(4 * graph.layout.size * (2 + moments))
    if free is not None and needed > free:
        log.warning(
            "parameters, gradients and moments take %s, %s are free: training may fail; %s",
            *_gb(needed, free),
            "free memory, or freeze layers" if execution.twice else 'use memory "low", free memory, or freeze layers',
        )


def _gb(*sizes: int) -> tuple[str, ...]:
    return tuple(f"{size / 1e9:.1f} GB" for size in sizes)
