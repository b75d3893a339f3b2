"""Run by torchrun in test_distributed.py: each process leaves what it found in FOLDER/RANK.json."""

import json
import os
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import onnxqat
from onnxqat.distributed import Workers
from onnxqat.torch import as_module, to_model
from onnxqat.training.trainer import Trainer
from tests.command_line import status_of
from tests.models import model as text_model
from tests.test_distributed import accumulating, sequences
from tests.training.test_trainer import BODY, WEIGHTS, batches

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


def model_of_data_parallel(rank: int) -> int:
    """Checksum after a step of a module that each process has calibrated on data of its own."""
    images = [{"x": b["x"] * (1 - 0.5 * rank) + rank} for b in batches(2)]
    module = as_module(onnxqat.insert(text_model(BODY, **WEIGHTS), images), threads=1)
    wrapped = torch.nn.parallel.DistributedDataParallel(module)
    for batch in batches(2, seed=rank):
        wrapped(torch.tensor(batch["x"])).square().mean().backward()
        torch.optim.SGD(wrapped.parameters(), lr=1e-3).step()
    return zlib.crc32(to_model(wrapped).SerializeToString(deterministic=True))


def sharded(rank: int, wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> float:
    """Largest difference of a step of a sharded module, each process with its rows, from one of the whole batch."""
    qdq = onnxqat.insert(text_model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)])
    (batch,) = batches(1, rows=6)
    x = torch.tensor(batch["x"])
    whole, module = as_module(qdq, threads=1), as_module(qdq, threads=1)
    module = wrap(module) or module
    for one, rows in ((whole, x), (module, x[3 * rank : 3 * rank + 3])):
        optimizer = torch.optim.SGD(one.parameters(), lr=1e-3)
        one(rows).square().mean().backward()
        optimizer.step()
    found, expected = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True)), whole.state_dict()
    assert rank or set(found) == set(expected), set(found) ^ set(expected)  # the first process gets the whole state
    return max((float((tensor - expected[name]).abs().max()) for name, tensor in found.items()), default=0.0)


def corrected() -> int:
    """Checksum of a model with the statistics of outputs over the batches of all processes."""
    config = onnxqat.Config(weight_bits=3, output_correction="affine")
    images = [{"x": b["x"]} for b in batches(3)]
    inserted = onnxqat.insert(text_model(BODY, **WEIGHTS), images, config, distributed=True)
    onnxqat.save(inserted, FOLDER / f"corrected-{dist.get_rank()}.onnx")
    return zlib.crc32(inserted.SerializeToString(deterministic=True))


def train_sequences(rank: int) -> None:
    trainer = accumulating(FOLDER / "sequences.onnx", distributed=True)
    for batch in sequences():
        trainer.step(batch)
    onnxqat.save(trainer.model(), FOLDER / f"sequences-{rank}.onnx")


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=1))
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
    goal = Trainer(model(0), loss="mse", optimizer=onnxqat.AdamW(lr=1e-2), distributed=True, threads=1)
    goal.fit([batch], epochs=20, validation=[batch], until=("loss", 0.9 * goal.evaluate([batch])["loss"]))
    found["goal"] = [goal.state.schedule.position.step, checksum(goal)]
    found["sharded"] = [
        sharded(rank, wrap)
        for wrap in (
            lambda module: FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True),
            lambda module: fully_shard(module, mesh=init_device_mesh("cpu", (2,))),
        )
    ]
    found["corrected"] = corrected()
    files = [FOLDER / "float.onnx", "--calibration", FOLDER / "calibration.npz", "-o", FOLDER / "two.onnx"]
    found["inserted"] = status_of("insert", *files)
    found["data parallel"] = model_of_data_parallel(rank)
    train_sequences(rank)
    found["no checkpoint"] = message(trainer.resume, FOLDER / "nowhere")
    found["gathered"] = [part["a"].tolist() for part in Workers.join().gather({"a": np.arange(rank + 1)})]
    kinds = {"a": np.float32(rank), "b": np.full((2, 0), rank, np.uint8), "c": np.full(3, rank, np.int64)}
    tensors, facts = Workers.join().from_first(lambda: ({n: np.asarray(a) for n, a in kinds.items()}, {"rank": rank}))
    found["first"] = [[n, str(a.dtype), a.tolist()] for n, a in tensors.items()], facts

    if rank == 0:  # the other one leaves
        found["silence"] = message(Workers.join().sum, np.zeros(3))
    (FOLDER / f"{rank}.json").write_text(json.dumps(found))


main()
# Not sys.exit: a thread of gloo that lets go of its last tensor only when Python has ended would abort this process. Data
# parallel modules keep the group, so destroy_process_group does not end its threads.
os._exit(0)
