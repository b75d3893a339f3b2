"""A contestant's process: `python -m tools.benchmark_few_bits.process TASK`, a task in JSON; answers in JSON.

It imports no more than its kind needs, so that it runs in any environment that has that.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module

from tools.benchmark_few_bits.task import Judged, Task

#: Module of each kind; its `run(task)` returns what came of `ptq` and, where it trains, of `qat`.
KINDS = {
    kind: f"tools.benchmark_few_bits.by_{kind}"
    for kind in ("onnxqat", "lsq", "brevitas", "nncf", "onnxruntime", "torchao")
}


def main() -> None:
    """Runs the task."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    task = Task(**json.loads(sys.argv[1]))
    found: dict[str, Judged] = import_module(KINDS[task.kind]).run(task)
    print(json.dumps({stage: asdict(judged) for stage, judged in found.items()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
