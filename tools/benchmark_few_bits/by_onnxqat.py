"""Ours: `insert`, `reconstruct` if asked for, `Trainer`.

Settings, all optional: `config`, of `Config`; `reconstruct`, of `reconstruct`, which is left out without it; `loss`; `optimizer`,
of `AdamW`; `warmup`, its steps; `trainer`, of `Trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

import onnxqat
from tools.benchmark_few_bits import data
from tools.benchmark_few_bits.runtime_run import judged
from tools.benchmark_few_bits.task import Clock, Judged, Task


def run(task: Task) -> dict[str, Judged]:
    """Results before training, `ptq`, and after it, `qat`."""
    axis, settings, clock = data.NETS[task.net], task.settings, Clock()
    qdq = inserted(task, settings)
    found = {"ptq": judged(qdq, axis, clock.read(), simulated=True)}
    if task.rate:
        clock = Clock()
        trainer = onnxqat.Trainer(
            qdq,
            settings.get("loss", "cross_entropy"),
            onnxqat.AdamW(lr=task.rate, **settings.get("optimizer", {})),
            schedule=onnxqat.Cosine(warmup_steps=settings.get("warmup", 0)),
            threads=1,
            **settings.get("trainer", {}),
        )
        trainer.fit(data.Training(axis, task.seed, task.steps), epochs=1)
        trained = trainer.model()
        found["qat"] = judged(trained, axis, clock.read(), simulated=True)
    return found


def inserted(task: Task, settings: Mapping[str, Any]) -> onnx.ModelProto:
    """The Q/DQ model without training."""
    model, batches = data.MODELS / f"{task.net}.onnx", data.calibration(data.NETS[task.net], task.seed)
    config = onnxqat.Config(weight_bits=task.bits, activation_bits=task.bits, **settings.get("config", {}))
    qdq = onnxqat.insert(model, batches, config)
    if "reconstruct" in settings:
        qdq = onnxqat.reconstruct(qdq, model, batches, seed=task.seed, threads=1, **settings["reconstruct"])
    return qdq
