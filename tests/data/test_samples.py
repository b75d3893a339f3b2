"""Axis that counts samples; every stage counts along it."""

import numpy as np
import pytest

from onnxqat.data import sources
from onnxqat.data.batch import Signature
from onnxqat.data.samples import Samples
from onnxqat.data.sources import Rows
from onnxqat.distributed import Workers
from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model, random

LSTM = {"w": random(1, 24, 8), "r": random(1, 24, 6)}
MODELS = {
    "the first": ("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }", {}, 0, 0),
    "a name that speaks of a batch": ("(float[T,batch,8] x) => (float[T,batch,8] y) { y = Relu(x) }", {}, 1, 1),
    "fixed time": ("(float[10,N,8] x) => (float[10,N,8] y) { y = Relu(x) }", {}, 1, 1),
    "the output's first": ("(float[T,M,8] x) => (float[M,8] y) { y = ReduceMean<axes=[0],keepdims=0>(x) }", {}, 1, 0),
    "that of a recurrent layer": (
        "(float[U,V,8] x) => (float[U,1,V,6] y) { y, h, c = LSTM<hidden_size=6>(x, w, r) }",
        LSTM,
        1,
        2,
    ),
    "that of a recurrent layer behind a Transpose": (
        "(float[V,U,8] x) => (float[U,1,V,6] y) { t = Transpose<perm=[1,0,2]>(x) y, h, c = LSTM<hidden_size=6>(t, w, r) }",
        LSTM,
        0,
        2,
    ),
    "images of any size, one at a time": ("(float[1,3,H,W] x) => (float[1,3,H,W] y) { y = Relu(x) }", {}, 0, 0),
}


@pytest.mark.parametrize(("body", "weights", "of_input", "of_output"), MODELS.values(), ids=MODELS)
def test_the_sample_axis_is_the_one_that_inputs_and_outputs_share(body, weights, of_input, of_output):
    found = Samples.of(io.load(model(body, **weights)))
    assert (found.inputs["x"], found.outputs["y"]) == (of_input, of_output)


def test_the_sample_axis_may_be_given():
    net = io.load(model("(float[U,V,8] x) => (float[U,V,8] y) { y = Relu(x) }"))
    assert Samples.of(net).inputs == {"x": 0}
    assert Samples.of(net, given=1).inputs == {"x": 1}
    with pytest.raises(InputError, match="sample_axis is 3"):
        Samples.of(net, given=3)


TIME_FIRST = io.load(
    model("(float[T,N,8] x, float[1,N,6] h) => (float[T,N,8] y, float[1,N,6] g) { y = Relu(x) g = Relu(h) }")
)
BATCH = {"x": random(5, 4, 8), "h": random(1, 4, 6), "label": np.arange(20).reshape(5, 4)}


def test_processes_share_a_time_first_batch_along_its_samples():
    signature = Signature.of(TIME_FIRST)
    parts = [Workers(rank, 2).split(BATCH, signature) for rank in range(2)]
    assert [share for _, share in parts] == [0.5, 0.5]
    for name, array in BATCH.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part, _ in parts], axis=1), array)


def test_labels_of_whole_sequences_are_shared_too():
    batch = BATCH | {"label": np.arange(4)}
    part, _ = Workers(1, 2).split(batch, Signature.of(TIME_FIRST))
    assert part["label"].tolist() == [2, 3]


def test_time_first_arrays_are_cut_into_batches_along_their_samples(tmp_path):
    np.savez(tmp_path / "data.npz", **BATCH)
    found = list(sources.batches(tmp_path / "data.npz", TIME_FIRST, batch_size=3))
    assert [batch["x"].shape for batch in found] == [(5, 3, 8), (5, 1, 8)]
    for name, array in BATCH.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found], axis=1), array)


def test_rows_in_memory_take_the_axis_of_their_samples():
    rows = Rows({"x": BATCH["x"], "label": np.arange(4)}, batch_size=2, axes={"x": 1})
    assert [batch["x"].shape for batch in rows] == [(5, 2, 8)] * 2
    assert [batch["label"].tolist() for batch in rows] == [[0, 1], [2, 3]]
