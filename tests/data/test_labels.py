"""Meaning of labels, the same for training, validation and verification: each against NumPy on the model's outputs."""

import json

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.distributed import Workers
from onnxqat.errors import InputError
from tests.models import model, outputs, random

W = {"w": random(8, 6), "b": random(6), "v": random(6, 4, scale=1.0), "d": random(4), "one": np.float32(1)}
X, LABELS = random(32, 8, scale=1.0), np.random.default_rng(0).integers(0, 4, 32)
SIDES = (random(32, 1, seed=9) > 0).astype(np.float32)


def inserted(body, x=X, **weights):
    return onnxqat.insert(model(body, **{**W, **weights}), [{"x": x}])


def three_ways(qdq, batch, loss="cross_entropy", **said):
    """The accuracy that training, `verify` and `evaluate` report."""
    found = onnxqat.Trainer(qdq, loss, **said).evaluate([batch])["accuracy"]
    report = onnxqat.verify(qdq, onnxqat.fold(qdq), [batch], **said)
    return found, report.trained, onnxqat.evaluate(qdq, [batch], **said)


@pytest.fixture(scope="module")
def classifier():
    return inserted("(float[N,8] x) => (float[N,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, d) }")


@pytest.fixture(scope="module")
def prompted():
    """A classifier whose classes are rows of an input, as many as there are."""
    proto = model(
        """(float[N,8] x, float[K,8] prompts) => (float[N,K] y) { a = MatMul(x, w) r = Relu(a) c = MatMul(prompts, u)
        t = Transpose<perm=[1,0]>(c) y = MatMul(r, t) }""",
        w=random(8, 6),
        u=random(8, 6, seed=1),
    )
    return onnxqat.insert(proto, [{"x": X, "prompts": X[:10]}])


TOKENS = (
    "(float[N,L,8] x) => (float[N,L,4] y) { a = MatMul(x, w) r = Relu(a) z = MatMul(r, v) y = Softmax<axis=-1>(z) }"
)
TIME_FIRST = TOKENS.replace("N,L", "T,N").replace("z = MatMul(r, v) y = Softmax<axis=-1>(z)", "y = MatMul(r, v)")


SEQUENCES = {
    "Softmax, as many tokens as classes": (TOKENS, (5, 4)),
    "Softmax": (TOKENS, (5, 3)),
    "logits": (TOKENS.replace("y = Softmax<axis=-1>(z)", "y = Identity(z)"), (5, 3)),
    "time first": (TIME_FIRST, (7, 5)),
    "time first, as many rows as classes": (TIME_FIRST, (7, 4)),
}


@pytest.mark.parametrize(("body", "shape"), SEQUENCES.values(), ids=SEQUENCES)
def test_tokens_are_classified_along_the_last_axis(body, shape):
    x, label = random(*shape, 8, scale=1.0), np.random.default_rng(1).integers(0, 4, shape)
    qdq = inserted(body, x)
    right = (outputs(qdq, {"x": x})[0].argmax(-1) == label).mean()
    assert three_ways(qdq, {"x": x, "label": label}) == pytest.approx((right,) * 3)


def test_where_labels_fit_two_axes_the_user_is_asked_and_answers():
    x, label = random(5, 4, 8, scale=1.0), np.random.default_rng(1).integers(0, 4, (5, 4))
    qdq = inserted(TOKENS.replace("y = Softmax<axis=-1>(z)", "y = Identity(z)"), x)
    batch = {"x": x, "label": label}
    for ask in (lambda: onnxqat.Trainer(qdq).step(batch), lambda: onnxqat.evaluate(qdq, [batch])):
        with pytest.raises(InputError, match="axis 1 or 2; say which by class_axis"):
            ask()
    right = (outputs(qdq, {"x": x})[0].argmax(-1) == label).mean()
    assert three_ways(qdq, batch, class_axis=-1) == pytest.approx((right,) * 3)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_labels_that_do_not_count_are_left_out_everywhere(classifier, ignored):
    label = np.where(LABELS == 1, ignored, LABELS)
    right = (outputs(classifier, {"x": X})[0].argmax(1) == LABELS)[LABELS != 1].mean()
    assert three_ways(classifier, {"x": X, "label": label}, ignore_label=ignored) == pytest.approx((right,) * 3)


def test_the_refusal_of_an_ignored_label_names_the_parameter(classifier):
    batch = {"x": X, "label": np.where(LABELS == 1, -100, LABELS)}
    for judge in (lambda: onnxqat.Trainer(classifier).step(batch), lambda: onnxqat.evaluate(classifier, [batch])):
        with pytest.raises(InputError, match=r"ignore_label=-100 \(--ignore-label\)"):
            judge()


def test_a_batch_whose_labels_are_all_ignored_is_refused(classifier):
    with pytest.raises(InputError, match="all are 255, which do not count"):
        onnxqat.Trainer(classifier, ignore_label=255).step({"x": X, "label": np.full(32, 255)})


def test_processes_with_unequal_numbers_of_labels_that_count_have_the_gradient_of_one(classifier):
    label = np.where(np.arange(32) < 10, -1, LABELS)
    trainer = onnxqat.Trainer(classifier, ignore_label=-1)
    batch = {"x": X, "label": label}
    expected = trainer.gradients(batch)[1]
    parts = [Workers(rank, 2).split(batch, trainer._steps.feeds.signature()) for rank in range(2)]
    weighted = [
        (trainer._steps.feeds.share(part, batch, share), trainer.gradients(part)[1]) for part, share in parts if part
    ]
    assert [share for share, _ in weighted] == [6 / 22, 16 / 22]
    for name, gradient in expected.items():
        total = sum(share * part[name] for share, part in weighted)
        np.testing.assert_allclose(total, gradient, rtol=1e-4, atol=1e-6)


def test_the_mean_over_batches_is_over_the_labels_that_count(classifier):
    label = np.where(np.arange(32) < 20, -1, LABELS)
    trainer = onnxqat.Trainer(classifier, ignore_label=-1)
    halves = [{"x": X[rows], "label": label[rows]} for rows in (slice(0, 24), slice(24, 32))]
    whole = trainer.evaluate([{"x": X, "label": label}])
    assert trainer.evaluate(halves) == pytest.approx(whole)


@pytest.mark.parametrize("column", [(32,), (32, 1)], ids=["vector", "column"])
@pytest.mark.parametrize(("end", "threshold"), [("y = Gemm(r, v, d)", 0), ("z = Gemm(r, v, d) y = Sigmoid(z)", 0.5)])
def test_one_column_is_a_decision_between_two(end, threshold, column):
    body = f"(float[N,8] x) => (float[N,1] y) {{ a = Gemm(x, w, b) r = Relu(a) {end} }}"
    qdq = inserted(body, v=random(6, 1, scale=2.0), d=random(1))
    for sides in (SIDES, np.zeros_like(SIDES)):
        right = ((outputs(qdq, {"x": X})[0] > threshold) == sides).mean()
        batch = {"x": X, "label": sides.reshape(column)}
        assert three_ways(qdq, batch, "bce_with_logits") == pytest.approx((right,) * 3)


def test_answers_of_pixels_are_compared_along_the_channels_where_no_labels_tell():
    body = """(float[N,3,4,4] x) => (float[N,4,4,5] y)
    { a = Conv(x, c) r = Relu(a) z = Conv(r, e) y = Transpose<perm=[0,2,3,1]>(z) }"""
    x = random(2, 3, 4, 4, scale=1.0)
    proto = model(body, c=random(6, 3, 1, 1), e=random(5, 6, 1, 1))
    qdq, coarse = (onnxqat.insert(proto, [{"x": x}], onnxqat.Config(weight_bits=bits)) for bits in (8, 3))
    ours, theirs = (outputs(one, {"x": x})[0].argmax(-1) for one in (qdq, coarse))
    report = onnxqat.verify(qdq, coarse, [{"x": x}])
    assert report.agreement == pytest.approx((ours == theirs).mean(), abs=2 / 32)


def test_one_column_is_no_choice_between_classes():
    body = "(float[N,8] x) => (float[N,1] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, d) }"
    qdq = inserted(body, v=random(6, 1), d=random(1))
    with pytest.raises(InputError, match=r"has one column.*bce_with_logits"):
        onnxqat.Trainer(qdq).step({"x": X, "label": np.zeros(32, np.int64)})


def test_several_sides_are_judged_one_by_one(classifier):
    batch = {"x": X, "label": random(32, 4, seed=3) > 0}
    right = ((outputs(classifier, {"x": X})[0] > 0) == batch["label"]).mean()
    assert onnxqat.Trainer(classifier, "bce_with_logits").evaluate([batch])["accuracy"] == pytest.approx(right)
    assert onnxqat.evaluate(classifier, [batch], metric="binary_accuracy") == pytest.approx(right)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (LABELS.astype(np.float32), r"whole numbers, so write them as such: label.astype\('int64'\)"),
        (np.eye(4, dtype=np.float32)[LABELS], "one-hot.*label.argmax"),
        (np.eye(4, dtype=np.int64)[LABELS], "one-hot.*label.argmax"),
        (LABELS + 1, "count from 1, so subtract 1"),
        (LABELS[:7], r"shape \[7\]; class numbers of shape \[32\]"),
    ],
    ids=["floats", "one-hot floats", "one-hot", "from 1", "too few"],
)
def test_advice_on_labels_is_the_same_everywhere(classifier, label, words):
    batch = {"x": X, "label": label}
    for judge in (lambda: onnxqat.Trainer(classifier).step(batch), lambda: onnxqat.evaluate(classifier, [batch])):
        with pytest.raises(InputError, match=words):
            judge()


def test_a_column_of_class_numbers_is_taken(classifier):
    expected = onnxqat.Trainer(classifier).step({"x": X, "label": LABELS})
    assert onnxqat.Trainer(classifier).step({"x": X, "label": LABELS[:, None]}) == expected


def test_the_number_of_classes_may_vary_and_labels_beyond_those_of_this_batch_are_refused(prompted):
    def batch(classes, highest):
        return {"x": X[:8], "prompts": random(classes, 8), "label": np.arange(8) % highest}

    trainer = onnxqat.Trainer(prompted)
    trainer.fit([batch(10, 8), batch(5, 5)], epochs=1)
    for judge in (trainer.step, lambda bad: onnxqat.evaluate(prompted, [batch(10, 8), bad])):
        with pytest.raises(InputError, match="holds 0 to 7, the model has 5 classes"):
            judge(batch(5, 8))


HIDDEN = {
    "Softmax": ("N,4", "e = Exp(z) s = ReduceSum<keepdims=1>(e, ax) y = Div(e, s)", {}, "cross_entropy", LABELS),
    "Sigmoid": (
        "N,1",
        "n = Neg(z) e = Exp(n) s = Add(e, one) y = Div(one, s)",
        {"v": random(6, 1), "d": random(1)},
        "bce_with_logits",
        SIDES,
    ),
}


@pytest.mark.parametrize(("shape", "end", "weights", "loss", "label"), HIDDEN.values(), ids=HIDDEN)
def test_probabilities_of_an_activation_that_is_not_found_are_not_taken_for_logits(shape, end, weights, loss, label):
    body = f"(float[N,8] x) => (float[{shape}] y) {{ a = Gemm(x, w, b) r = Relu(a) z = Gemm(r, v, d) {end} }}"
    qdq = inserted(body, ax=np.array([1]), **weights)
    with pytest.raises(InputError, match="probabilities"):
        onnxqat.Trainer(qdq, loss).step({"x": X, "label": label})


def test_a_model_that_masks_by_infinity_trains_and_is_verified():
    body = """(float[N,8] x, bool[N,4] open) => (float[N,4] y)
    { a = Gemm(x, w, b) r = Relu(a) z = Gemm(r, v, d) y = Where(open, z, low) }"""
    allowed = np.ones((32, 4), bool)
    allowed[:, 2] = False
    qdq = onnxqat.insert(model(body, **W, low=np.float32(-np.inf)), [{"x": X, "open": allowed}])
    batch = {"x": X, "open": allowed, "label": np.where(LABELS == 2, 0, LABELS)}
    trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-2))
    before = trainer.evaluate([batch])["loss"]
    trainer.fit([batch], epochs=3)
    assert trainer.evaluate([batch])["loss"] < before
    report = onnxqat.verify(trainer.model(), onnxqat.fold(trainer.model()), [batch])
    assert report.agreement == 1
    assert np.isfinite(report.worst.steps)


def test_a_label_that_the_model_rules_out_is_named():
    body = "(float[N,8] x) => (float[N,4] y) { a = Gemm(x, w, b) r = Relu(a) z = Gemm(r, v, d) s = Mul(z, z) y = Add(s, m) }"
    qdq = inserted(body, m=np.array([0, 0, -np.inf, 0], np.float32))
    with pytest.raises(onnxqat.TrainingError, match="label 2 is a class that the model rules out"):
        onnxqat.Trainer(qdq).step({"x": X, "label": np.full(32, 2)})


def test_distilling_leaves_out_what_the_data_sizes(caplog):
    body = """(float[N,8] x) => (float[N,4] y, float[K] found)
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, d) g = Greater(y, one) i = NonZero(g) t = Transpose<perm=[1,0]>(i)
      found = GatherND(y, t) }"""
    trainer = onnxqat.Trainer(inserted(body), "distill")
    assert "leaves out output 'found'" in caplog.text
    assert np.isfinite(trainer.step({"x": X}))


def test_a_run_with_binary_labels_is_judged_by_them(call, tmp_path):
    body = "(float[N,8] x) => (float[N,1] y) { a = Gemm(x, w, b) r = Relu(a) z = Gemm(r, v, d) y = Sigmoid(z) }"
    onnx.save(model(body, **{**W, "v": random(6, 1, scale=2.0), "d": random(1)}), tmp_path / "float.onnx")
    np.savez(tmp_path / "data.npz", x=X, label=SIDES)
    deployed, report = tmp_path / "out.onnx", tmp_path / "report.json"
    options = ["--loss", "bce_with_logits", "--epochs", 1, "--json", report, "-o", deployed]
    status, out, err = call("run", tmp_path / "float.onnx", "--data", tmp_path / "data.npz", *options)
    assert status == 0, err
    assert "binary_accuracy" in out
    found = json.loads(report.read_text())
    right = ((outputs(onnx.load(deployed), {"x": X})[0] > 0.5) == SIDES).mean()
    assert found["deployed"] == pytest.approx(right, abs=1 / 32)


def test_a_run_of_a_model_whose_sample_axis_must_be_given(call, tmp_path):
    body = "(float[U,V,8] x) => (float[U,V,4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    onnx.save(model(body, **W), tmp_path / "float.onnx")
    x = random(7, 12, 8, scale=1.0)
    np.savez(tmp_path / "data.npz", x=x, label=np.random.default_rng(1).integers(0, 4, (7, 12)))
    options = ["--sample-axis", 1, "--batch-size", 5, "--epochs", 1, "--json", tmp_path / "report.json"]
    arguments = ["--data", tmp_path / "data.npz", *options, "-o", tmp_path / "out.onnx"]
    status, _, err = call("run", tmp_path / "float.onnx", *arguments)
    assert status in (0, 1), err
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 12


def test_the_command_line_takes_the_class_axis_and_the_label_to_ignore(call, tmp_path):
    x, label = random(5, 4, 8, scale=1.0), np.random.default_rng(1).integers(0, 4, (5, 4))
    label[:, 0] = -100
    proto = inserted(TOKENS.replace("y = Softmax<axis=-1>(z)", "y = Identity(z)"), x)
    onnx.save(proto, tmp_path / "qdq.onnx")
    np.savez(tmp_path / "data.npz", x=x, label=label)
    said = ["--class-axis", 2, "--ignore-label", -100, "--data", tmp_path / "data.npz"]
    assert call("train", tmp_path / "qdq.onnx", *said, "--epochs", 1, "-o", tmp_path / "trained.onnx")[0] == 0
    status, out, _ = call("eval", tmp_path / "qdq.onnx", *said)
    right = (outputs(proto, {"x": x})[0].argmax(-1) == label)[label >= 0].mean()
    assert (status, out.strip()) == (0, f"accuracy {right:.4f}")


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("lowest", [-np.inf, -1e9])
@pytest.mark.parametrize("layer", ["z = MatMul(r, v)", "z = Gemm(r, v, d)"], ids=["MatMul", "Gemm"])
def test_classes_masked_by_addition_leave_the_layer_before_as_it_is(layer, lowest, granularity):
    mask = np.array([0, 0, lowest, 0], np.float32)
    proto = model(
        f"(float[N,8] x) => (float[N,4] y) {{ a = Gemm(x, w, b) r = Relu(a) {layer} y = Add(z, m) }}", **W, m=mask
    )
    qdq = onnxqat.insert(proto, [{"x": X}], onnxqat.Config(weight_granularity=granularity))
    trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-4))
    trainer.step({"x": X, "label": LABELS % 2})
    expected, found = outputs(proto, {"x": X})[0], outputs(onnxqat.fold(trainer.model()), {"x": X}, plain=False)[0]
    kept = [0, 1, 3]
    assert np.abs(found[:, kept] - expected[:, kept]).max() < 0.05 * np.abs(expected[:, kept]).max()
    np.testing.assert_array_equal(found[:, 2] <= -1e8, True)
