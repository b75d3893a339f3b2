"""Whether a deployed model is worse than its float model: by more than is allowed, and by more than chance explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.metrics.table import Tally
from onnxqat.verification.measures import measure, shown

Array = NDArray[Any]

#: Training has recovered a part of the loss if the model lost this many times as much before it.
RECOVERED = 1.5


@dataclass(frozen=True)
class Evidence:
    """Further facts about the two models, which tell causes apart.

    Attributes:
        constant: score of the best constant answer, by which losses are measured.
        trained_score: the Q/DQ model's, its quantizers computed in float; None where there are no labels.
        inserted_score: the deployed model's right after insertion; None: not known.
        agreement: share of answers that the trained and the deployed model have in common; None where there are no classes.
        suspicion: what is wrong with the float model's own score, if anything.
        runtime_hint: what is wrong with the runtime, if it is not the one that the model was made for.
        saturates: whether products of the deployed model saturate on this processor; None: not known.
    """

    constant: float = 0.0
    trained_score: float | None = None
    inserted_score: float | None = None
    agreement: float | None = None
    suspicion: str | None = None
    runtime_hint: str | None = None
    saturates: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """Loss of quality from the float to the deployed model.

    Attributes:
        metric: what was compared.
        float_score: the float model's.
        deployed_score: the deployed model's.
        drop: how much worse the deployed model is, in `unit`.
        allowed: how much worse it may be.
        noise: two standard errors of the drop over the samples; infinite for a single one.
        samples: how many samples were judged.
        enforced: whether more than is allowed is a failure; a warning otherwise.
        evidence: facts that point to the cause.

    Example:
        ```python
        if report.verdict is not None and report.verdict.exceeded:
            print(report.verdict.sentence)
        ```
    """

    metric: str
    float_score: float
    deployed_score: float
    drop: float
    allowed: float
    noise: float
    samples: int
    enforced: bool
    evidence: Evidence

    @property
    def exceeded(self) -> bool:
        """Whether the drop is more than is allowed, and than chance explains."""
        return self.drop > self.allowed and self.drop > self.noise

    @property
    def fails(self) -> bool:
        """Whether the exit status reports a failure."""
        return self.exceeded and self.enforced

    @property
    def cause(self) -> str:
        """Most likely cause, and the remedy."""
        if self.evidence.suspicion is not None:
            return self.evidence.suspicion
        if self.evidence.runtime_hint is not None:
            return self.evidence.runtime_hint
        if self._is_lost_in_the_runtime:
            return _saturation(self.evidence.saturates)
        return self._lost_before_the_runtime()

    def _lost_before_the_runtime(self) -> str:
        """Cause of a drop that the trained model shares, and the remedy."""
        inserted = self._drop_of(self.evidence.inserted_score)
        if inserted is None:
            return (
                "the trained model is as bad, so the bits are too few (give more, or train longer), training has diverged "
                "(lower --lr) or the calibration data does not fit (give data like what the model will see, scaled as in "
                "training)"
            )
        before = self._scores(self.evidence.inserted_score)
        if inserted < self.drop / 2:
            return f"training has diverged, since right after insertion {before}; lower --lr"
        if inserted > RECOVERED * self.drop:
            return (
                f"quantization, of which training has recovered a part: before it {before}; train longer, give more bits, or "
                "keep the layers that lose most in float (ignore in --config)"
            )
        return (
            "calibration that does not fit, since quantization alone lost as much; give --calibration data like what the model "
            "will see, more of it, or keep the layers that lose most in float (ignore in --config)"
        )

    @property
    def comparison(self) -> str:
        """The drop and what it is measured against, in words."""
        change = f"{abs(self.drop):.3g} {measure(self.metric).unit}".rstrip()
        noise = "not known" if math.isinf(self.noise) else f"{self.noise:.2g}"
        change = f"{change} {'worse' if self.drop > 0 else 'better'}" if self.drop else "no difference"
        return f"{change}; {self.allowed:g} allowed, two standard errors {noise}"

    @property
    def sentence(self) -> str:
        """Sentence about the drop, with the likely cause where it exceeds the bound."""
        said = (
            f"deployed model: {self._scores(self.deployed_score)}, the float model's {shown(self.metric, self.float_score)} "
            f"({self.comparison})"
        )
        return f"{said}; likely cause: {self.cause}" if self.exceeded else said

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain numbers and strings; what is infinite is None."""
        plain = asdict(self)
        del plain["evidence"]
        plain["noise"] = None if math.isinf(self.noise) else self.noise
        cause = self.cause if self.exceeded else None
        return {**plain, "unit": measure(self.metric).unit, "exceeded": self.exceeded, "cause": cause}

    @property
    def _is_lost_in_the_runtime(self) -> bool:
        """Whether the trained model does not share most of the drop."""
        trained = self._drop_of(self.evidence.trained_score)
        if trained is not None:
            return trained < self.drop / 2
        return self.evidence.agreement is not None and 100 * (1 - self.evidence.agreement) > self.drop / 2

    def _drop_of(self, score: float | None) -> float | None:
        if score is None:
            return None
        return float(measure(self.metric).drop(self.float_score, score, self.evidence.constant))

    def _scores(self, score: float | None) -> str:
        return f"{self.metric} is {shown(self.metric, score)}"


def check_judged(max_drop: float | None, *, possible: bool) -> None:
    """Raises InputError where a bound is asked for and nothing can be compared with it."""
    if max_drop is not None and not possible:
        raise InputError("max drop: there are neither labels nor class scores to judge by; add labels to the data")


def judge(
    metric: str, floats: Array, deployed: Array, evidence: Evidence = Evidence(), *, max_drop: float | None = None
) -> Verdict | None:
    """Compares two models sample by sample: they see the same samples, so what both get wrong does not count as noise.

    Args:
        metric: name of the metric.
        floats: the float model's value for each sample [N].
        deployed: the deployed model's [N].
        evidence: what else is known.
        max_drop: how much worse the deployed model may be, which is then enforced; None: the metric's default, which is not.

    Returns:
        The verdict; None where nothing says what is allowed, or there are no samples.
    """
    by = measure(metric)
    allowed = by.allowed if max_drop is None else max_drop
    if allowed is None or not len(floats):
        return None
    # a relative drop of each sample is relative to the mean over all
    apart = np.asarray(by.drop(floats, deployed, evidence.constant), np.float64)
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
    return Verdict(
        metric=metric,
        float_score=float(floats.mean()),
        deployed_score=float(deployed.mean()),
        drop=float(apart.mean()),
        allowed=allowed,
        noise=2 * error,
        samples=len(apart),
        enforced=max_drop is not None,
        evidence=evidence,
    )


def judge_parts(
    floats: Tally, deployed: Tally, samples: int, evidence: Evidence, *, max_drop: float | None = None
) -> Verdict | None:
    """Compares two models by a metric that is no mean over samples; its error is that of a jackknife over batches.

    Args:
        floats: the float model's statistics.
        deployed: the deployed model's, of the same batches.
        samples: how many samples were judged.
        evidence: what else is known.
        max_drop: see `judge`.

    Returns:
        The verdict; None where nothing says what is allowed.
    """
    metric = floats.metric
    by = measure(metric.name)
    allowed = by.allowed if max_drop is None else max_drop
    before, after, batches = floats.score, deployed.score, len(floats.parts)
    if allowed is None or before is None or after is None:
        return None
    error = math.inf
    if batches > 1:
        pairs = zip(floats.without_each(), deployed.without_each(), strict=True)
        apart = [float(by.drop(one, other, evidence.constant)) for one, other in pairs]
        error = math.sqrt((batches - 1) * float(np.var(apart)))
    drop = float(by.drop(before, after, evidence.constant))
    enforced = max_drop is not None
    return Verdict(metric.name, before, after, drop, allowed, 2 * error, samples, enforced, evidence)


def per_sample(values: Array, rows: int) -> Array:
    """One value for each of `rows` samples, from those of all their decisions in order: [rows]."""
    flat = np.asarray(values, np.float64).reshape(-1)
    if flat.size <= rows:
        return flat
    # decisions that do not count are left out, so samples may have unequal numbers of them: the borders are then a guess
    return np.array([part.mean() for part in np.array_split(flat, rows)])


def joined(parts: Sequence[Array]) -> Array:
    """The values of all batches: [N]."""
    return np.concatenate(parts) if parts else np.zeros(0)


def _saturation(saturates: bool | None) -> str:
    if saturates is False:
        return (
            "the runtime computes other numbers than training did; see where the difference arises in the report, "
            "and try another version with --interpreter"
        )
    certain = "saturate" if saturates else "may saturate"
    return (
        f"the trained model does not lose as much, so the runtime's integer kernels compute other numbers: on a processor "
        f"without VNNI pairs of products {certain} 16 bits; insert with overflow_fix 'pairs'"
    )
