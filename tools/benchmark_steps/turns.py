"""A contestant: `python -m tools.benchmark_steps.turns KIND FOLDER OPTIONS`; takes a step for each line that it reads.

It answers each line by one of its own, in JSON: seconds on the clock, seconds of its processors, and its peak of memory in MB. It
imports no more than its kind needs, so that it runs in any interpreter that has that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

#: Module of each kind; its `step(folder, **options)` returns what takes a step.
KINDS = {kind: f"tools.benchmark_steps.by_{kind}" for kind in ("trainer", "module", "torch", "nncf")}


def main() -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    kind, folder, options = sys.argv[1:]
    step: Callable[[], object] = import_module(KINDS[kind]).step(Path(folder), **json.loads(options))
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        step()
        taken = {"wall": time.perf_counter() - start, "cpu": time.process_time() - used}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**taken, "peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
