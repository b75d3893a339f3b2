"""Ours: `insert`, `reconstruct` if asked for, `Trainer`.

Settings, all optional: `config`, of `Config`; `reconstruct`, of `reconstruct`, which is left out without it; `loss`; `optimizer`,
of `AdamW`; `warmup`, its steps; `trainer`, of `Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

import onnxqat
from tools.benchmark_few_bits.nets import Batch, Net, net
from tools.benchmark_few_bits.runtime_run import judged
from tools.benchmark_few_bits.task import Clock, Judged, Task


def run(task: Task) -> dict[str, Judged]:
    """Results before training, `ptq`, and after it, `qat`."""
    settings, source = task.settings, net(task.net)
    calibration, training = source.calibration(task.seed), source.training(task.seed, task.steps)
    clock = Clock()
    qdq = inserted(task, source, calibration)
    found = {"ptq": judged(qdq, source, clock.read(), simulated=True)}
    if task.rate:
        clock, labelled = Clock(), source.loss == "cross_entropy"
        trainer = onnxqat.Trainer(
            qdq,
            settings.get("loss", "cross_entropy" if labelled else "distill"),
            onnxqat.AdamW(lr=task.rate, **settings.get("optimizer", {})),
            schedule=onnxqat.Cosine(warmup_steps=settings.get("warmup", 0)),
            teacher=None if labelled else source.model,
            threads=1,
            **settings.get("trainer", {}),
        )
        trainer.fit(training, epochs=1)
        trained = trainer.model()
        found["qat"] = judged(trained, source, clock.read(), simulated=True)
    return found


def inserted(task: Task, source: Net, batches: Sequence[Batch]) -> onnx.ModelProto:
    """The Q/DQ model without training."""
    settings = task.settings
    config = onnxqat.Config(weight_bits=task.bits, activation_bits=task.bits, **settings.get("config", {}))
    qdq = onnxqat.insert(source.model, batches, config)
    if "reconstruct" in settings:
        qdq = onnxqat.reconstruct(qdq, source.model, batches, seed=task.seed, threads=1, **settings["reconstruct"])
    return qdq
