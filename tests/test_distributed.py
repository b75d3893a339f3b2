"""Real processes, started by torchrun, on one thread each."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxqat
from models import fashion_mnist
from onnxqat.data.batch import Signature
from onnxqat.distributed import Workers
from onnxqat.errors import InputError
from onnxqat.training.trainer import Trainer
from tests import fashion
from tests.models import model, random
from tests.training.test_trainer import BODY, WEIGHTS, batches

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SIGNATURE = Signature({"x": (np.dtype(np.float32), (None, 3)), "scalar": (np.dtype(np.float32), ())})


def batch(rows):
    return {"x": np.arange(3.0 * rows).reshape(rows, 3), "scalar": np.float32(1), "label": np.arange(rows)}


@pytest.mark.parametrize(
    ("rows", "shares"),
    [([8], [[2, 2, 2, 2]]), ([8, 3], [[2, 2, 2, 2], [0, 1, 1, 1]]), ([4, 8, 5], [[1] * 4, [2] * 4, [1, 1, 1, 2]])],
    ids=["even", "fewer rows than processes at the end", "a smaller one at the end"],
)
def test_every_row_goes_to_one_process(rows, shares):
    everyone = [Workers(rank, 4) for rank in range(4)]
    for count, expected in zip(rows, shares, strict=True):
        parts = [worker.split(batch(count), SIGNATURE) for worker in everyone]
        assert [0 if part is None else len(part["x"]) for part, _ in parts] == expected
        assert sum(share for _, share in parts) == pytest.approx(1)
        given = [part for part, _ in parts if part is not None]
        np.testing.assert_array_equal(np.concatenate([part["label"] for part in given]), np.arange(count))
        assert all(part["scalar"] == 1 and part["scalar"].ndim == 0 for part in given)


def test_a_number_of_processes_that_does_not_divide_the_batch_is_an_error():
    with pytest.raises(InputError, match=r"8 rows, which 3 processes .* multiple of 3"):
        Workers(0, 3).split(batch(8), SIGNATURE)


def test_a_model_with_a_fixed_batch_is_an_error():
    fixed = Signature({"x": (np.dtype(np.float32), (8, 3))})
    with pytest.raises(InputError, match=r"'x'.*dynamic batch"):
        Workers(0, 2).split({"x": batch(8)["x"]}, fixed)


def test_a_process_started_alone_is_told_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="torchrun"):
        Workers.join()


SEQUENCES = """(float[T,N,8] x) => (float[T,N,4] y)
{
    a = MatMul (x, w) c = Add (a, b) r = Relu (c)
    y = MatMul (r, v)
}"""


def sequences():
    """Time-first batches of which some labels do not count; in one, none of the second process does."""
    generator = np.random.default_rng(0)
    found = []
    for rows, ignored in ((6, slice(3, 6)), (4, slice(0, 1)), (6, slice(0, 0)), (2, slice(0, 1))):
        label = generator.integers(0, 4, (5, rows))
        label[:, ignored] = -100
        found.append({"x": generator.standard_normal((5, rows, 8), dtype=np.float32), "label": label})
    return found


def accumulating(qdq, **settings):
    """A trainer whose rate is so high that weights outgrow their scales."""
    said = {"accumulate": 2, "class_axis": 2, "sample_axis": 1, "ignore_label": -100, "threads": 1}
    return Trainer(qdq, optimizer=onnxqat.SGD(lr=1.0), **said, **settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns the findings of two processes of distributed_script.py."""
    folder = tmp_path_factory.mktemp("script")
    images = [{"x": b["x"]} for b in batches(2)]
    onnxqat.save(onnxqat.insert(model(BODY, **WEIGHTS), images), folder / "qdq.onnx")
    onnxqat.save(model(BODY, **WEIGHTS), folder / "float.onnx")
    np.savez(folder / "calibration.npz", x=np.concatenate([b["x"] for b in batches(5)]))
    weights = {"w": random(8, 6), "b": random(6), "v": random(6, 4)}
    calibration = [{"x": batch["x"]} for batch in sequences()]
    onnxqat.save(onnxqat.insert(model(SEQUENCES, **weights), calibration), folder / "sequences.onnx")
    command = [*TORCHRUN, "-m", "tests.distributed_script", folder]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_gradients_are_those_of_one_process_and_the_same_everywhere(found):
    folder, _ = found
    data = {"x": batches(1, rows=6)[0]["x"], "label": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)}
    loss, expected = Trainer(folder / "qdq.onnx", loss="mse", threads=1).gradients(data)
    first, second = (dict(np.load(folder / f"{rank}.npz")) for rank in range(2))
    assert first.pop("loss") == second.pop("loss") == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.slow
def test_accumulated_time_first_batches_train_and_hold_weights_as_one_process_does(found):
    folder, _ = found
    first, second = ((folder / f"sequences-{rank}.onnx").read_bytes() for rank in range(2))
    assert first == second
    trainer = accumulating(folder / "sequences.onnx")
    for one in sequences():
        trainer.step(one)
    onnxqat.save(trainer.model(), folder / "alone.onnx")
    start, alone, together = (parameters(folder / f"{name}.onnx") for name in ("sequences", "alone", "sequences-0"))
    for name, array in alone.items():
        assert np.linalg.norm(together[name] - array) <= 1e-5 * np.linalg.norm(array), name
    for weight in "wv":
        w, scale = together[weight], together[f"{weight}_scale"]
        least = np.maximum(np.abs(w[0::2] + w[1::2]).max(axis=0), np.abs(w).max(axis=0)) / 127
        assert (scale >= least * (1 - 1e-6)).all()
        raised = np.isclose(scale, least, rtol=1e-6) & (scale > start[f"{weight}_scale"])
        assert raised.any()


@pytest.mark.slow
def test_all_begin_with_the_parameters_of_the_first(found):
    folder, (first, second) = found
    whole = Trainer(folder / "qdq.onnx", loss="mse", threads=1)
    from zlib import crc32

    assert first["start"] == second["start"] == crc32(whole.state.parameters.tobytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("not finite", "TrainingError: step 1.*not finite"),
        ("other data", "InputError: data: the processes read different batches"),
        ("odd batch", "InputError: batch: has 5 rows, which 2 processes"),
        ("other model", "InputError: model: differs between the processes"),
        ("no checkpoint", "InputError: .*nowhere: holds no checkpoint"),
    ],
)
def test_all_stop_alike(found, what, words):
    _, everyone = found
    for one in everyone:
        assert re.match(words, one[what]), one[what]
        assert "\n" not in one[what]
        assert one["unchanged"]


@pytest.mark.slow
def test_tensors_of_any_shape_are_gathered_and_sent(found):
    assert all(one["gathered"] == [[0], [0, 1]] for one in found[1])
    first = [["a", "float32", 0.0], ["b", "uint8", [[], []]], ["c", "int64", [0, 0, 0]]], {"rank": 0}
    assert all(one["first"] == list(first) for one in found[1])


@pytest.mark.slow
def test_modules_of_different_calibrations_are_one_model_in_data_parallel_training(found):
    first, second = found[1]
    assert first["data parallel"] == second["data parallel"]


@pytest.mark.slow
def test_outputs_are_corrected_by_what_all_processes_see(found):
    folder, (first, second) = found
    assert first["corrected"] == second["corrected"]
    config = onnxqat.Config(weight_bits=3, output_correction="affine")
    expected = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(3)], config)
    shared = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(folder / "corrected-0.onnx").graph.initializer}
    for initializer in expected.graph.initializer:
        np.testing.assert_allclose(
            shared[initializer.name], onnx.numpy_helper.to_array(initializer), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
def test_calibration_by_the_command_line_writes_the_model_of_one_process(found, call):
    folder, everyone = found
    assert [one["inserted"] for one in everyone] == [0, 0]
    arguments = [
        "insert",
        folder / "float.onnx",
        "--calibration",
        folder / "calibration.npz",
        "-o",
        folder / "one.onnx",
    ]
    assert call(*arguments)[0] == 0
    one, two = parameters(folder / "one.onnx"), parameters(folder / "two.onnx")
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_sharded_modules_take_the_step_of_the_whole_batch(found):
    for one in found[1]:
        assert max(one["sharded"]) < 1e-6


@pytest.mark.slow
def test_a_run_until_a_bound_ends_at_the_same_step_in_all_processes(found):
    (steps, parameters), other = (one["goal"] for one in found[1])
    assert [steps, parameters] == other
    assert 0 < steps < 20


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_given_up_in_time(found):
    assert re.match("LostProcessError: another process .* does not answer .*--resume", found[1][0]["silence"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    qdq = onnxqat.insert(ROOT / "models" / "separable.onnx", fashion_mnist.calibration_nhwc(), onnxqat.Config())
    onnxqat.save(qdq, folder / "qdq.onnx")
    fashion.write(folder, train=slice(157), validation=slice(160, 210))  # a last batch of 5 rows, one of 2
    return folder


def training(folder, output):
    data = ["--data", folder / "train.npz", "--validation", folder / "validation.npz", "--batch-size", "8"]
    settings = ["--epochs", "2", "--lr", "1e-5", "--threads", "1", "-o", folder / output]
    settings += ["--metric", "perplexity"]  # by accuracy no epoch is better than the model before training
    return ["-m", "onnxqat", "train", folder / "qdq.onnx", *data, *settings]


def numbers(text, epoch):
    """Losses and accuracy that a line tells."""
    (line,) = [line for line in text.splitlines() if line.startswith(epoch)]
    return [float(word) for word in re.findall(r"\d\.\d+", line)]


def parameters(path):
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(folder, call):
    """40 steps, the last of each epoch on 5 rows; at a higher rate a value that rounds the other way may set them apart."""
    command = [*TORCHRUN, *training(folder, "two.onnx")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    said = run.stdout + run.stderr
    _, _, by_one = call(*training(folder, "one.onnx")[2:])
    one, two, start = parameters(folder / "one.onnx"), parameters(folder / "two.onnx"), parameters(folder / "qdq.onnx")
    moved = 0
    for name, array in one.items():
        if array.dtype == np.float32:
            assert np.linalg.norm(two[name] - array) <= 1e-5 * np.linalg.norm(array), name
            moved += not np.array_equal(start[name], array)
    assert moved > 50
    assert said.count("wrote") == said.count("epoch 1/2") == 1
    for epoch in "epoch 1/2", "epoch 2/2":
        assert numbers(said, epoch) == pytest.approx(numbers(by_one, epoch), rel=0.01)
