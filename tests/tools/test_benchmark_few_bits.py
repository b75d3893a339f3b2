"""The benchmark that referees: what it runs, what it makes of results, and its reference."""

import json

import numpy as np
import pytest

import onnxqat
from onnxqat import numerics
from onnxqat.runtime import Inference
from tests.models import model
from tools.benchmark_few_bits import nets, real
from tools.benchmark_few_bits.contestants import CONTESTANTS, Budget
from tools.benchmark_few_bits.results import Results
from tools.benchmark_few_bits.table import digest, table
from tools.readme import BENCHMARKS, README, section

BUDGET = Budget()


def stage(test, loss):
    return {"test": test, "validation": test, "loss": loss, "seconds": 70.0, "peak": 800.0}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of runs that are made up: the higher rate has the lower loss, and the lower score."""
    ran = []

    def fake(task, python):
        ran.append(task)
        scored = stage(0.92 - task.rate + task.seed / 1000, 1 - task.rate)
        return {"ptq": stage(0.8, 2.0), **({"qat": scored} if task.rate else {})}

    monkeypatch.setattr("tools.benchmark_few_bits.results._run", fake)
    found = Results(tmp_path / "results.json")
    return found, ran


def run(name, results, bits=2, budget=BUDGET):
    for task in CONTESTANTS[name].tasks("resnet20", bits, budget, results):
        results.run(task, "python")


def test_rate_is_chosen_by_validation_loss_of_the_first_seed(results):
    kept, ran = results
    run("affine", kept)
    assert [(task.seed, task.rate) for task in ran] == [(0, 3e-4), (0, 1e-3), (1, 1e-3), (2, 1e-3)]
    assert [rate for rate, _ in CONTESTANTS["affine"].done("resnet20", 2, BUDGET, kept)] == [1e-3] * 3


def test_what_has_run_does_not_run_again(results):
    kept, ran = results
    run("affine", kept)
    run("affine", kept)
    assert len(ran) == 4


def test_a_contestant_whose_rates_have_not_all_run_is_not_in_the_table(results):
    kept, _ = results
    first = next(CONTESTANTS["affine"].tasks("resnet20", 2, BUDGET, kept))
    kept.run(first, "python")
    assert CONTESTANTS["affine"].done("resnet20", 2, BUDGET, kept) == []


def test_without_training_a_cell_is_filled_as_far_as_it_goes(results):
    kept, ran = results
    run("affine", kept, budget=Budget(steps=0))
    assert [(task.seed, task.rate) for task in ran] == [(0, 0), (1, 0), (2, 0)]
    assert "| resnet20 | onnxqat, affine | W2A2 | 80.00 ± 0.00 |  |  | 70 |" in table(kept, BUDGET.seeds)


def test_five_epochs_have_a_line_of_their_own(results):
    kept, _ = results
    run("affine", kept)
    run("affine", kept, budget=Budget([0], 2300))
    lines = [line for line in table(kept, [0]).splitlines() if "affine" in line]
    assert [line.split(" | ")[1] for line in lines] == ["onnxqat, affine", "onnxqat, affine, five epochs"]
    run("mean", kept)
    assert "mean, five epochs" not in table(kept, [0])


def test_contestants_differ_in_their_tasks(results):
    firsts = [
        next(one.tasks("resnet20", next(iter(one.rates)), BUDGET, results[0])).key for one in CONTESTANTS.values()
    ]
    assert len({json.dumps({**json.loads(key), "bits": 0, "rate": 0}, sort_keys=True) for key in firsts}) == len(firsts)


def test_table_gives_mean_and_deviation_over_seeds_and_the_digest_its_best_peer(results):
    kept, _ = results
    for name in ("affine", "reconstruct", "brevitas", "lsq-kept"):
        run(name, kept)
    run("onnxruntime", kept, bits=8)
    text = table(kept, BUDGET.seeds)
    assert "| resnet20 | onnxqat, affine | W2A2 | 80.00 ± 0.00 | 92.00 ± 0.10 | 0.001 | 70 | 70 | 800 | 800 |" in text
    assert "| resnet20 | ONNX Runtime, static | W8A8 | 80.00 ± 0.00 |  |  | 70 |  | 800 |  |" in text
    row = "| resnet20, W2A2 | 93.09 | 80.00 ± 0.00 | 92.00 ± 0.10 | 80.00 ± 0.00 | **92.07 ± 0.10** | 92.00 ± 0.10, Brevitas,"
    assert row in digest(text)
    peer = "| resnet20 | NNCF | W2A2 |  | 99.00 ± 0.10 | 0.001 | 70 | 70 | 800 | 800 | a processor |"
    assert "92.07 ± 0.10 | **99.00 ± 0.10**, NNCF | 92.00 ± 0.10 |" in digest(f"{text}\n{peer}")


def test_lines_without_a_result_stay_in_the_table(results):
    kept, _ = results
    run("affine", kept)
    old = "| resnet20 | LSQ in PyTorch | W2A2 | 90.00 |  |  | 9 |  | 500 |  | another |"
    replaced = "| resnet20 | onnxqat, affine | W2A2 | 1.00 |  |  | 9 |  | 500 |  | another |"
    text = table(kept, BUDGET.seeds, "\n".join([*table(kept, BUDGET.seeds).splitlines()[:2], old, replaced]))
    assert [line.split(" | ")[1:4] for line in text.splitlines()[2:]] == [
        ["onnxqat, affine", "W2A2", "80.00 ± 0.00"],
        ["LSQ in PyTorch", "W2A2", "90.00"],
    ]


def test_digest_of_the_readme_is_that_of_the_benchmarks():
    assert section("few-bits", README) == digest(section("few-bits", BENCHMARKS))


@pytest.mark.parametrize(
    ("signed", "axis"), [pytest.param(True, 0, id="weights"), pytest.param(False, None, id="data")]
)
def test_reference_has_the_gradients_of_learned_step_sizes(signed, axis):
    torch = pytest.importorskip("torch")
    from tools.benchmark_few_bits.by_lsq import Quantizer

    random = np.random.default_rng(0)
    x, dy = random.normal(size=(2, 4, 5, 3, 3)).astype(np.float32)
    quantizer = Quantizer(torch.tensor(x), 3, signed=signed, per_channel=axis == 0)
    scale = quantizer.scale.detach().numpy()
    steps = x / scale
    # from the last code to half a step beyond it, the paper clips, and ours rounds first
    low, high = quantizer.qmin, quantizer.qmax
    x[((steps > high) & (steps < high + 0.5)) | ((steps < low) & (steps > low - 0.5))] = 0
    data = torch.tensor(x, requires_grad=True)
    quantizer(data).backward(torch.tensor(dy))
    scale = scale.reshape(-1 if axis == 0 else ())
    dx, dscale = numerics.fake_quantize_gradient(dy, x, scale, np.zeros_like(scale, np.int32), low, high, axis)
    np.testing.assert_allclose(data.grad, dx, rtol=1e-6)
    np.testing.assert_allclose(
        quantizer.scale.grad.reshape(scale.shape) / quantizer.factor, dscale, rtol=1e-4, atol=1e-5
    )


def test_loss_of_probabilities_is_that_of_their_logits():
    logits, label = np.array([[1, 2, -1], [0, 0, 3]], np.float32), np.array([1, 0])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(nets.cross_entropy(logits, label), nets.cross_entropy(probabilities, label), rtol=1e-5)


@pytest.mark.parametrize(
    ("last", "loss"),
    [pytest.param("Softmax", nets.divergence, id="classes"), pytest.param("Sigmoid", nets.squared, id="values")],
)
def test_losses_of_distillation_are_those_that_training_lowers(last, loss):
    random = np.random.default_rng(0)
    w, x = random.normal(size=(2, 3)).astype(np.float32), random.normal(size=(8, 2)).astype(np.float32)
    teacher = model(f"(float[n, 2] x) => (float[n, 3] y) {{ h = MatMul(x, w) y = {last}(h) }}", w=w)
    qdq = onnxqat.insert(teacher, [{"x": x}], onnxqat.Config(weight_bits=2, first_last_bits=None))
    trained = onnxqat.Trainer(qdq, "distill", teacher=teacher).evaluate([{"x": x}])["loss"]
    output, expected = (Inference(one)({"x": x})["y"] for one in (qdq, teacher))
    np.testing.assert_allclose(loss(output, expected).mean(), trained, rtol=1e-4)


def test_batches_that_choose_rates_are_never_trained_on():
    held, _ = real.parts("pitch")
    both_epochs = real.net("pitch").training(0, 100)
    assert not any(np.array_equal(batch["frames"], each.inputs["frames"]) for batch in both_epochs for each in held)
