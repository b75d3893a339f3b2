"""A model beyond protobuf's 2 GiB, made on the fly, through insert and fold; a graph of many nodes in little time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import external, io, qdq
from onnxqat.insertion import insert
from onnxqat.runtime import Inference
from tests.models import outputs
from tools.benchmark_stages import network

LAYERS, WIDTH = 32, 4096
#: The child's own peak: `ru_maxrss` would count what the process that forked it held.
CHILD = """
import sys
from pathlib import Path
from onnxqat import cli
try:
    cli.main()
except SystemExit as end:
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print("PEAK", peak.split()[1])
    sys.exit(end.code)
"""


def stack(folder: Path, layers: int, width: int) -> Path:
    """Layers of MatMul, Add and Relu whose weights lie in a file beside the model, written one at a time."""
    random = np.random.default_rng(0)
    # keeps the variance of activations over any number of layers (He et al. 2015)
    block = random.standard_normal((width, width), dtype=np.float32) * np.float32(np.sqrt(2 / width))
    nodes, weights, value = [], [], "x"
    with (folder / "big.data").open("wb") as data:
        for number in range(layers):
            weight = TensorProto(
                name=f"w{number}", data_type=TensorProto.FLOAT, dims=block.shape, data_location=TensorProto.EXTERNAL
            )
            for key, entry in (("location", "big.data"), ("offset", data.tell()), ("length", block.nbytes)):
                weight.external_data.add(key=key, value=str(entry))
            np.roll(block, number, axis=number % 2).tofile(data)
            weights += [weight, numpy_helper.from_array(np.full(width, 0.01, np.float32), f"b{number}")]
            names = [f"m{number}", f"a{number}", "y" if number == layers - 1 else f"r{number}"]
            nodes += [
                helper.make_node("MatMul", [value, f"w{number}"], names[:1]),
                helper.make_node("Add", [names[0], f"b{number}"], names[1:2]),
                helper.make_node("Relu", names[1:2], names[2:]),
            ]
            value = names[2]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "big.onnx")
    np.savez(folder / "data.npz", x=random.standard_normal((8, width), dtype=np.float32))
    return folder / "big.onnx"


def peak(*arguments: object) -> int:
    """Peak memory in bytes of a command line in a process of its own."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split("PEAK ")[1])


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_model_above_two_gigabytes_is_inserted_and_folded_in_memory_below_two_and_a_half_times_its_file(tmp_path):
    if shutil.disk_usage(tmp_path).free < 12e9 or available_memory() < 8e9:
        pytest.skip("needs 12 GB of disk and 8 GB of memory")
    try:
        path = stack(tmp_path, LAYERS, WIDTH)
        size = (tmp_path / "big.data").stat().st_size
        assert size >= 2**31
        assert peak("insert", path, "--calibration", tmp_path / "data.npz", "-o", tmp_path / "q.onnx") < 2.5 * size
        assert peak("fold", tmp_path / "q.onnx", "-o", tmp_path / "d.onnx") < 2.5 * size
        assert (tmp_path / "d.onnx").stat().st_size < 0.28 * size
    finally:
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.fixture
def mapped(monkeypatch, tmp_path) -> Path:
    """A model whose weights count as too large for memory."""
    monkeypatch.setattr(external, "TOO_LARGE", 100_000)
    monkeypatch.setattr(external, "MAPPED_ABOVE", 10_000)
    return stack(tmp_path, 4, 96)


def test_mapped_weights_give_the_same_models_as_loaded_ones(mapped, monkeypatch):
    batches = [np.random.default_rng(1).standard_normal((4, 96), dtype=np.float32)]
    large = insert(mapped, batches)
    folded = fold(large)
    monkeypatch.undo()
    small = insert(mapped, batches)
    assert large == small
    assert folded == fold(small)


def test_session_of_a_mapped_model_reads_the_weights_where_they_are(mapped, monkeypatch):
    loaded = io.load(mapped)
    batch = {"x": np.random.default_rng(1).standard_normal((4, 96), dtype=np.float32)}
    result = Inference(loaded)(batch)["y"]
    monkeypatch.undo()
    np.testing.assert_array_equal(result, outputs(io.to_proto(io.load(mapped)), batch)[0])


def test_mapped_model_is_saved_over_its_own_files(mapped):
    before = io.to_proto(io.load(mapped))
    mapped.rename(mapped.with_name("m.onnx"))
    io.save(io.load(mapped.with_name("m.onnx")), mapped)
    (mapped.parent / "big.data").unlink()
    assert io.to_proto(io.load(mapped)).graph == before.graph


def test_mapped_weights_stay_after_the_file_was_replaced(mapped):
    loaded = io.load(mapped)
    first = loaded.graph.initializers["w0"].const_value.numpy().copy()
    io.save(loaded, mapped)
    assert np.array_equal(loaded.graph.initializers["w0"].const_value.numpy(), first)


#: Trains a step and saves the model; prints the peak of memory beyond what the process takes before, in bytes.
TRAIN = """
import sys
from pathlib import Path
import numpy as np
import onnxqat
from onnxqat.graph import external
from onnxqat.training.running import engine
from onnxqat.training.training_graph import memory
def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
folder, choice = Path(sys.argv[1]), sys.argv[2]
external.TOO_LARGE = memory.LARGEST_KEPT = engine.LARGEST_COPIES = 2**25  # as if it were of gigabytes
external.MAPPED_ABOVE = 2**20
before = held("VmRSS")
run = onnxqat.Trainer(folder / "q.onnx", "distill", teacher=folder / "big.onnx", memory=choice)
run.step({"x": np.load(folder / "data.npz")["x"]})
onnxqat.save(run.view(), folder / "trained.onnx")
print("PEAK", held("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_training_takes_little_more_than_what_it_must_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "TOO_LARGE", 2**25)
    path = stack(tmp_path, 16, 1024)
    size = (tmp_path / "big.data").stat().st_size
    io.save(
        insert(path, [np.load(tmp_path / "data.npz")["x"]], Config(weight_granularity="per_tensor")),
        tmp_path / "q.onnx",
    )
    # parameters, gradients and teacher are 3, moments 2 or a half; for the rest, 16 layers count more than hundreds would
    for choice, most in (("auto", 6.2), ("low", 4.7)):
        command = [sys.executable, "-c", TRAIN, str(tmp_path), choice]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split("PEAK ")[1]) < most * size, choice


@pytest.mark.slow
def test_stages_take_time_in_proportion_to_the_nodes_of_a_graph():
    small, large = processor_seconds(250), processor_seconds(1000)
    # four times the nodes; work that grew with their square would take sixteen times as long
    assert all(after < 8 * before for before, after in zip(small, large, strict=True))


def processor_seconds(nodes: int) -> tuple[float, float]:
    """Of insert and fold; a busy machine disturbs them less than it does the wall clock (see tools/benchmark_stages.py)."""
    proto = network(nodes)
    start = time.process_time()
    quantized = insert(proto, [{"x": np.ones((1, 8, 8, 8), np.float32)}])
    inserted = time.process_time()
    fold(quantized)
    assert len(qdq.quantizers(io.load(quantized))) > nodes / 2
    return inserted - start, time.process_time() - inserted
