"""Broken models, configurations, data and checkpoints, tried on the command line: seeded, so that each case can be repeated.

Run: `python tools/fuzz.py --cases 10000 --seed 1`. A case is a copy of a good file with a few mutations, and the
commands that read it. It fails if the process dies or hangs, if an error is not one line with exit status 1 or 2, or if what
was written with exit status 0 does not pass ONNX's checker, does not load in ONNX Runtime or answers with NaN. Cases run in
child processes, many in each, under a limit of memory and time. `--only N` repeats a case with its messages.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, this finds the package beside it

from tools.fuzzing.cases import Case, case
from tools.fuzzing.judge import judged
from tools.fuzzing.seeds import write_seeds

#: Seconds that a case may take; a busy machine is slow.
SECONDS = 120.0
#: Cases of one child.
SHARE = 100
#: Bytes of address space of a child: libraries and threads take about one of these gigabytes.
MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Failure:
    """A case that ended in a way that is not allowed.

    Attributes:
        number: number of the case; `case` makes it again.
        what: kind and mutations of the case.
        why: how it ended.
    """

    number: int
    what: str
    why: str


def campaign(numbers: list[int], seed: int) -> Iterator[Failure]:
    """Runs the cases of these numbers and yields those that fail; progress goes to standard error."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        _in_child(lambda: write_seeds(folder / "seeds"))
        left = list(numbers)
        while left:
            failures: list[Failure] = []
            done, ended = _share(left[:SHARE], seed, folder, failures)
            left = left[done:]
            if ended is not None:
                what = case(folder / "seeds", seed, left[0], folder / "work").what
                failures.append(Failure(left.pop(0), what, ended))
            yield from failures
            print(f"{len(numbers) - len(left)} of {len(numbers)} cases done", file=sys.stderr, flush=True)


def _share(numbers: list[int], seed: int, folder: Path, failures: list[Failure]) -> tuple[int, str | None]:
    """Runs cases in one child until they are done or it ends; returns how many are done, and how it ended if it did early."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_all(numbers, seed, folder, writer)
    os.close(writer)
    done, lines = 0, b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], SECONDS)
            content = os.read(reader, 65536) if ready else b""
            if not content:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                return done, None if done == len(numbers) else "hangs" if not ready else f"ends with {status}"
            *whole, lines = (lines + content).split(b"\n")
            for line in whole:
                number, _, rest = line.decode(errors="replace").partition("\t")
                what, _, why = rest.partition("\t")
                failures.extend([Failure(int(number), what, why)] if why else [])
                done += 1
    finally:
        os.close(reader)


def _run_all(numbers: list[int], seed: int, folder: Path, writer: int) -> None:
    """The child: a line for each case, which says why it failed if it did."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    status = 1
    try:
        for number in numbers:
            made = case(folder / "seeds", seed, number, folder / "work")
            os.write(writer, f"{number}\t{made.what}\t{judged(made) or ''}\n".encode())
        status = 0
    finally:
        os._exit(status)


def _in_child(work: Callable[[], None]) -> None:
    """Runs a function in a process of its own: sessions must not be open where children are forked."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("error: the good files of the corpus could not be made")


def _repeat(seed: int, number: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        write_seeds(folder / "seeds")
        made: Case = case(folder / "seeds", seed, number, folder / "work")
        print(made.what)
        for command in made.commands:
            print("onnxqat", *command)
        print("verdict:", judged(made, echo=True) or "right")


def main() -> None:
    """Runs a campaign and prints what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one case and show its messages")
    options = parser.parse_args()
    if options.only is not None:
        _repeat(options.seed, options.only)
        return
    begin = time.monotonic()
    failed = 0
    for failure in campaign(list(range(options.first, options.first + options.cases)), options.seed):
        failed += 1
        print(f"{failure.number}: {failure.what}: {failure.why}", flush=True)
    print(f"{options.cases} cases, {failed} failed, {time.monotonic() - begin:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
