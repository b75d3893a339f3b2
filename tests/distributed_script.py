"""Run by torchrun in test_distributed.py: each process leaves what it found in FOLDER/RANK.json."""

import json
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import torch.distributed as dist

import onnxqat
from onnxqat.distributed import Workers
from onnxqat.train.trainer import Trainer
from tests.train.test_trainer import batches

FOLDER = Path(sys.argv[1])


def checksum(trainer: Trainer) -> int:
    return zlib.crc32(trainer.state.parameters.tobytes())


def model(rank: int) -> onnx.ModelProto:
    """The model, with other weights in every process but the first."""
    proto = onnx.load(FOLDER / "qdq.onnx")
    weight = next(i for i in proto.graph.initializer if i.name == "w2")
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1 + rank)).tobytes()
    return proto


def message(call, *arguments, **named) -> str:
    try:
        call(*arguments, **named)
    except onnxqat.OnnxqatError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank = dist.get_rank()
    found = {}
    trainer = Trainer(model(rank), loss="mse", distributed=True, threads=1)
    found["start"] = checksum(trainer)

    random = np.random.default_rng(0)
    batch = {"x": batches(1, rows=6)[0]["x"], "label": random.normal(size=(6, 5)).astype(np.float32)}
    loss, gradients = trainer.gradients(batch)
    np.savez(FOLDER / f"{rank}.npz", loss=loss, **gradients)

    before = checksum(trainer)
    label = batch["label"].copy()
    label[-1] = 3e38  # in the rows of the last process alone
    found["not finite"] = message(trainer.step, {**batch, "label": label})
    found["unchanged"] = checksum(trainer) == before

    found["other data"] = message(trainer.fit, [{**batch, "x": batch["x"] + rank}], epochs=1)
    found["odd batch"] = message(
        Trainer(model(0), loss="mse", distributed=True).step, {n: a[:5] for n, a in batch.items()}
    )
    found["other model"] = message(Trainer, model(0), freeze=["b1"] if rank else [], distributed=True)
    found["no checkpoint"] = message(trainer.resume, FOLDER / "nowhere")
    found["gathered"] = [part["a"].tolist() for part in Workers.join().gather({"a": np.arange(rank + 1)})]

    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", timeout=timedelta(seconds=3), init_method=f"file://{FOLDER}/store", rank=rank, world_size=2
    )
    if rank == 0:  # the other one does not answer
        found["silence"] = message(Workers.join().sum, np.zeros(3))
    (FOLDER / f"{rank}.json").write_text(json.dumps(found))


main()
