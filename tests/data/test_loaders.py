"""The loaders of both frameworks, arrays, lists and generators, read by every stage that takes data."""

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import onnxqat
from onnxqat.data.sources import Rows
from onnxqat.errors import InputError
from onnxqat.training.trainer import Trainer
from tests.models import model, random

ROWS, BATCH = 40, 8
X = random(ROWS, 6, seed=1, scale=1.0)
LABELS = np.random.default_rng(2).integers(0, 3, ROWS)
FLOAT = model(
    "(float[N,6] x) => (float[N,3] y) { h = Gemm(x, w, b)\n r = Relu(h)\n y = Gemm(r, v, c) }",
    w=random(6, 5),
    b=random(5),
    v=random(5, 3),
    c=random(3),
)
CUTS = [slice(start, start + BATCH) for start in range(0, ROWS, BATCH)]


def items():
    """Yields what a user's own loader might give: neither names nor layout are the model's."""
    return [{"pixels": np.uint8(np.clip(X[cut] * 40 + 128, 0, 255)), "target": LABELS[cut]} for cut in CUTS]


def to_batch(item):
    return {"x": (np.asarray(item["pixels"], np.float32) - 128) / 40, "label": np.asarray(item["target"])}


def torch_loader(**options):
    return DataLoader(TensorDataset(torch.tensor(X), torch.tensor(LABELS)), batch_size=BATCH, **options)


def shuffled_loader():
    data = TensorDataset(torch.tensor(X), torch.tensor(LABELS))
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
    return DataLoader(data, batch_size=BATCH, sampler=sampler)


def tf_dataset():
    return tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(BATCH)


LOADERS = {
    "torch DataLoader": torch_loader,
    "torch DataLoader of dicts": lambda: DataLoader(
        [{"x": x, "label": label} for x, label in zip(X, LABELS, strict=True)], batch_size=BATCH
    ),
    "tf.data.Dataset": tf_dataset,
    "tf.data.Dataset of dicts": lambda: tf.data.Dataset.from_tensor_slices({"x": X, "label": LABELS}).batch(BATCH),
    "list of arrays": lambda: [(X[cut], LABELS[cut]) for cut in CUTS],
    "list of lists": lambda: [(X[cut].astype(object).tolist(), LABELS[cut].tolist()) for cut in CUTS],
    "rows in memory": lambda: Rows({"x": X, "label": LABELS}, BATCH),
    "generator": lambda: ((X[cut], LABELS[cut]) for cut in CUTS),
    "generator function": lambda: lambda: ((X[cut], LABELS[cut]) for cut in CUTS),
}
AS_BATCHES = [{"x": X[cut], "label": LABELS[cut]} for cut in CUTS]


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(FLOAT, AS_BATCHES)


@pytest.fixture(scope="module")
def deployed(qdq):
    return onnxqat.fold(qdq)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_calibration_reads_it(make, qdq):
    assert onnxqat.insert(FLOAT, make()) == qdq


IN_ORDER = {name: make for name, make in LOADERS.items() if name != "rows in memory"}


@pytest.mark.parametrize("make", IN_ORDER.values(), ids=IN_ORDER)
def test_training_and_validation_read_it(make, qdq):
    expected, trainer = Trainer(qdq), Trainer(qdq)
    expected.fit(AS_BATCHES, epochs=1, validation=AS_BATCHES)
    trainer.fit(make(), epochs=1, validation=make())
    np.testing.assert_array_equal(trainer.state.parameters, expected.state.parameters)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_evaluation_reads_it(make, qdq):
    assert Trainer(qdq).evaluate(make()) == Trainer(qdq).evaluate(AS_BATCHES)


@pytest.mark.parametrize("name", ["torch DataLoader", "tf.data.Dataset", "generator"])
def test_single_steps_and_gradients_read_its_items(name, qdq):
    stepped, expected = Trainer(qdq), Trainer(qdq)
    for item, batch in zip(LOADERS[name](), AS_BATCHES, strict=True):
        loss, gradients = stepped.gradients(item)
        same_loss, same_gradients = expected.gradients(batch)
        assert loss == same_loss
        assert all(np.array_equal(gradients[key], same_gradients[key]) for key in same_gradients)
        assert stepped.step(item) == expected.step(batch)


@pytest.mark.parametrize("name", ["torch DataLoader", "tf.data.Dataset"])
def test_evaluate_and_verify_read_it(name, qdq, deployed):
    assert onnxqat.evaluate(deployed, LOADERS[name]()) == onnxqat.evaluate(deployed, AS_BATCHES)
    report = onnxqat.verify(qdq, deployed, LOADERS[name]())
    assert report.samples == ROWS
    assert report.deployed == onnxqat.evaluate(deployed, AS_BATCHES)


def test_transform_makes_batches_of_items_for_every_stage(qdq, deployed):
    batches = [to_batch(item) for item in items()]
    assert onnxqat.insert(FLOAT, items(), transform=to_batch) == onnxqat.insert(FLOAT, batches)
    assert Trainer(qdq).evaluate(items(), transform=to_batch) == Trainer(qdq).evaluate(batches)
    assert onnxqat.evaluate(deployed, items(), transform=to_batch) == onnxqat.evaluate(deployed, batches)
    assert onnxqat.verify(qdq, deployed, items(), transform=to_batch).samples == ROWS
    given, expected = Trainer(qdq), Trainer(qdq)
    given.fit(items(), epochs=1, validation=items(), transform=to_batch)
    expected.fit(batches, epochs=1, validation=batches)
    np.testing.assert_array_equal(given.state.parameters, expected.state.parameters)


def test_seeded_shuffling_of_torch_gives_the_same_run_twice_and_another_order_in_each_epoch(qdq):
    class Orders(onnxqat.callbacks.Callback):
        def on_train_begin(self, trainer):
            self.losses = []

        def on_step_end(self, trainer, loss):
            self.losses.append(loss)

    runs = []
    for _ in range(2):
        trainer, orders = Trainer(qdq, optimizer=onnxqat.SGD(lr=1e-30, momentum=0.0)), Orders()
        trainer.fit(shuffled_loader(), epochs=2, callbacks=[orders])
        runs.append(orders.losses)
    assert runs[0] == runs[1]
    first, second = runs[0][: len(CUTS)], runs[0][len(CUTS) :]
    assert first != second
    # the same rows in another order: nearly the same mean
    assert np.mean(first) == pytest.approx(np.mean(second), rel=1e-5)


def test_rows_in_memory_are_shuffled_by_the_trainers_seed(qdq):
    def run(seed):
        trainer = Trainer(qdq, seed=seed)
        trainer.fit(Rows({"x": X, "label": LABELS}, BATCH), epochs=1)
        return trainer.state.parameters.tobytes()

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize(
    ("arrays", "size", "message"),
    [
        ({"x": X, "label": LABELS[:4]}, 8, "data: its arrays have different lengths"),
        ({}, 8, "holds no arrays of rows"),
        ({"x": X}, 0, "batch size is 0"),
    ],
    ids=["lengths", "nothing", "batch size"],
)
def test_rows_that_do_not_fit_together_are_refused(arrays, size, message):
    with pytest.raises(InputError, match=message):
        Rows(arrays, size)


EMPTY = {
    "list": list,
    "generator": lambda: (x for x in []),
    "function": lambda: lambda: iter([]),
    "torch DataLoader": lambda: DataLoader(TensorDataset(torch.zeros(0, 6)), batch_size=BATCH),
    "tf.data.Dataset": lambda: tf.data.Dataset.from_tensor_slices(X[:0]).batch(BATCH),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize(
    "stage",
    [
        lambda _, d: onnxqat.insert(FLOAT, d),
        lambda q, d: Trainer(q).fit(d, epochs=1),
        lambda q, d: Trainer(q).evaluate(d),
    ],
    ids=["insert", "fit", "evaluate"],
)
def test_a_loader_that_yields_nothing_is_refused(make, stage, qdq):
    with pytest.raises(InputError, match="no batches came"):
        stage(qdq, make())


GOOD = {"x": X[:4], "label": LABELS[:4]}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (GOOD | {"x": X[:4, :5]}, r"batch 1: 'x' has shape \[4, 5\], the model takes \[any, 6\]"),
        ({"x": X[:4]}, "batch 1: holds 'x', batch 0 held 'x', 'label'"),
        (
            GOOD | {"label": LABELS[:4, None]},
            r"batch 1: 'label' is int64 of shape \[4, 1\], in batch 0 it was int64 of",
        ),
        (
            GOOD | {"label": np.float32(LABELS[:4])},
            r"batch 1: 'label' is float32 of shape \[4\], in batch 0 it was int64",
        ),
    ],
    ids=["shape", "keys", "rank", "type"],
)
def test_a_loader_that_changes_midway_is_refused_with_the_batch_number(item, message):
    with pytest.raises(InputError, match=message):
        onnxqat.insert(FLOAT, [GOOD, item])


@pytest.mark.parametrize(
    "given",
    [(X, LABELS), X, torch.tensor(X), {"x": X, "label": LABELS}],
    ids=["inputs and labels", "array", "tensor", "dict"],
)
def test_whole_arrays_are_told_from_batches(given, qdq):
    with pytest.raises(
        InputError, match=r"is a single batch, .* or cut whole arrays into batches with onnxqat.data.Rows"
    ):
        Trainer(qdq).fit(given)


@pytest.mark.parametrize(
    "loader",
    [
        tf.data.Dataset.from_tensor_slices((X, LABELS)),
        DataLoader(TensorDataset(torch.tensor(X), torch.tensor(LABELS)), batch_size=None),
    ],
    ids=["tf.data.Dataset", "torch DataLoader"],
)
def test_a_loader_of_single_samples_is_refused(loader, qdq):
    with pytest.raises(InputError, match=r"has shape \[6\].*; if these are single samples, let the loader batch them"):
        Trainer(qdq).fit(loader)


@pytest.mark.parametrize("kind", ["data", "validation"])
def test_a_generator_for_several_epochs_is_refused_before_the_first(kind, qdq):
    trainer = Trainer(qdq)
    given = {"data": AS_BATCHES, "validation": AS_BATCHES} | {kind: iter(AS_BATCHES)}
    with pytest.raises(
        InputError, match=f"{kind}: a list_iterator can be read once, not for 2 epochs; pass a function"
    ):
        trainer.fit(given["data"], epochs=2, validation=given["validation"])
    assert trainer.schedule.position.step == 0


@pytest.mark.parametrize(
    "stage", [lambda q, d: onnxqat.insert(FLOAT, d), lambda q, d: Trainer(q).fit(d)], ids=["insert", "fit"]
)
def test_a_dataset_without_end_is_refused(stage, qdq):
    with pytest.raises(InputError, match=r"repeats without end; leave out repeat\(\)"):
        stage(qdq, tf_dataset().repeat())


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda item: item["image"], r"transform: fails on item 0 of the loader \(KeyError: 'image'\)"),
        (lambda item: {"image": item["pixels"]}, "batch 0: holds 'image', the model takes 'x', 'label'"),
        (3, "transform: is a int; give a function"),
    ],
    ids=["raises", "wrong names", "no function"],
)
def test_a_transform_that_does_not_fit_is_named(transform, message, qdq):
    with pytest.raises(InputError, match=message) as caught:
        Trainer(qdq).fit(items(), transform=transform)
    assert "\n" not in str(caught.value)
