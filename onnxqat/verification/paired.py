"""The float and the deployed model on the same samples: what the verdict is made from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions
from onnxqat.errors import InputError
from onnxqat.metrics.table import Tally
from onnxqat.verification.baseline import Baseline
from onnxqat.verification.judge import Evidence, Verdict, joined, judge, judge_parts, per_sample
from onnxqat.verification.measures import AGREEMENT


def agreeing(one: NDArray[Any], other: NDArray[Any], decisions: Decisions) -> NDArray[np.bool_] | None:
    """Returns the mask of equal decisions of two outputs; None if they make no decisions."""
    if one.shape != other.shape:
        return None
    ours, theirs = decisions.predicted(one), decisions.predicted(other)
    return None if ours is None or theirs is None else np.asarray(ours == theirs)


@dataclass
class Paired:
    """The float and the deployed model's values for the same samples.

    Attributes:
        baseline: how the float model does by itself.
        floats: the float model's metric for each sample, batch by batch.
        deployed: the deployed model's.
        agreeing: share of equal answers for each sample; empty where there are no class scores.
        tally: the deployed model's statistics of a metric that is no mean over samples.
    """

    baseline: Baseline
    floats: list[NDArray[Any]] = field(default_factory=list)
    deployed: list[NDArray[Any]] = field(default_factory=list)
    agreeing: list[NDArray[Any]] = field(default_factory=list)
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally(self.baseline.judge)

    def add(
        self,
        inputs: dict[str, NDArray[Any]],
        expected: NDArray[Any],
        deployed: NDArray[Any],
        label: NDArray[Any] | None,
        rows: int,
    ) -> None:
        """Takes in a batch: inputs, first outputs of the float and the deployed model, labels if any, how many samples."""
        if expected.ndim != deployed.ndim:
            raise InputError(
                f"float model: its first output has shape {list(expected.shape)}, the deployed model's "
                f"{list(deployed.shape)}; give the model that the deployed one was made from"
            )
        self.baseline.add(inputs, expected, label)
        values = self.baseline.judge.values
        if label is not None and values is not None:
            self.floats.append(per_sample(values(expected, label), rows))
            self.deployed.append(per_sample(values(deployed, label), rows))
        elif label is not None:
            self.tally.add(deployed, label)
        same = agreeing(expected, deployed, self.baseline.decisions)
        if same is not None:
            self.agreeing.append(per_sample(same, rows))

    def verdict(self, evidence: Evidence, max_drop: float | None) -> Verdict | None:
        """Judges the deployed model by the metric or, without labels, by how often it answers differently."""
        known = replace(evidence, constant=self.baseline.constant, suspicion=self.baseline.suspicion)
        if self.floats:
            return judge(self.baseline.metric, joined(self.floats), joined(self.deployed), known, max_drop=max_drop)
        if self.tally.parts:
            return judge_parts(self.baseline.tally, self.tally, len(joined(self.agreeing)), known, max_drop=max_drop)
        same = joined(self.agreeing)
        return judge(AGREEMENT, np.ones(len(same)), same, known, max_drop=max_drop)
