"""The comparisons, and their lines in the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.benchmark_steps.contestants import Contestant, Times, in_turn
from tools.benchmark_steps.subjects import IMAGES, Subject

HEADER = (
    "| network, size, batch | step, 1 / {threads} threads | gain | plain layout | `as_module` | engine `runtime` | "
    "onnxruntime {stock} | torch | ours over it, 1 / {threads} | NNCF | it over ours, 1 / {threads} | memory over torch's |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)

#: Ways of ours that have a column of their own.
VARIANTS = ("plain", "module", "runtime", "stock")


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        threads: number of threads beside one.
        turns: timed turns of each contestant.
        clock: "wall" or "cpu".
        nncf: interpreter that has NNCF; empty: it does not take part.
        runtime: interpreter with an ONNX Runtime that cannot train; empty: it does not take part.
    """

    threads: int
    turns: int
    clock: str
    nncf: str = ""
    runtime: str = ""

    def row(self, subject: Subject) -> str:
        """The subject's line of the table."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            subject.write(folder)
            ours = self._turns(folder, {**self._trainers(subject), **self._variants(subject)})
            torch = self._turns(folder, self._trainers(subject) | self._in_layouts("torch", subject))
            rivals = self._in_layouts("nncf", subject)
            nncf = self._turns(folder, self._trainers(subject) | rivals) if rivals else {}
        most = ours[str(self.threads)]
        over = [f"{ours[name].over(most):.2f}" if name in ours else "" for name in VARIANTS]
        memory = most.peak / self._best(torch, "torch", self.threads).peak
        cells = [
            _milliseconds(ours[str(n)] for n in self._counts),
            f"{ours['1'].over(most):.2f}",
            *over,
            *self._beside(torch, "torch"),
            *self._beside(nncf, "nncf"),
            f"{memory:.2f}",
        ]
        return "| " + " | ".join([subject.title, *cells]) + " |"

    @property
    def _counts(self) -> tuple[int, int]:
        return 1, self.threads

    def _turns(self, folder: Path, contestants: Mapping[str, Contestant]) -> dict[str, Times]:
        return in_turn(contestants, folder, self.turns, self.clock)

    def _trainers(self, subject: Subject) -> dict[str, Contestant]:
        """Our step, by its number of threads."""
        return {str(n): Contestant("trainer", {"loss": subject.loss, "threads": n}) for n in self._counts}

    def _variants(self, subject: Subject) -> dict[str, Contestant]:
        """Ways of ours that are compared with it, on all threads."""
        options = {"loss": subject.loss, "threads": self.threads}
        found = {
            "plain": Contestant("trainer", {**options, "layout": "plain"}),
            "module": Contestant("module", options),
            "runtime": Contestant("trainer", {**options, "engine": "runtime"}),
        }
        return found | ({"stock": Contestant("trainer", options, self.runtime)} if self.runtime else {})

    def _in_layouts(self, kind: str, subject: Subject) -> dict[str, Contestant]:
        """Another's step on each number of threads; networks of images in both of its layouts."""
        images = subject in IMAGES
        if kind == "nncf" and not (self.nncf and images):
            return {}
        return {
            f"{kind} {n} {layout}": Contestant(
                kind,
                {"loss": subject.loss, "threads": n, "channels_last": layout == "last"},
                self.nncf if kind == "nncf" else "",
            )
            for layout in ("first", "last")[: 1 + images]
            for n in self._counts
        }

    def _best(self, times: Mapping[str, Times], kind: str, threads: int) -> Times:
        found = [one for name, one in times.items() if name.startswith(f"{kind} {threads} ")]
        return min(found, key=lambda one: one.milliseconds)

    def _beside(self, times: Mapping[str, Times], kind: str) -> list[str]:
        """Another's milliseconds, and the ratios: ours over PyTorch's, NNCF's over ours."""
        if not any(name.startswith(kind) for name in times):
            return ["", ""]
        best = {n: self._best(times, kind, n) for n in self._counts}
        ratios = [times[str(n)].over(one) if kind == "torch" else one.over(times[str(n)]) for n, one in best.items()]
        return [_milliseconds(best.values()), " / ".join(f"{ratio:.2f}" for ratio in ratios)]


def _milliseconds(times: Iterable[Times]) -> str:
    return " / ".join(f"{one.milliseconds:.0f}" for one in times) + " ms"
