"""Zero points that are trained: their gradient, and what becomes of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion import insert
from onnxqat.numerics import clipped
from onnxqat.runtime import Inference, exact_options, session
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.quantizers.calls import call_quantizers
from onnxqat.training.quantizers.zero_points import add_floats
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph.build import load_qdq, same_graph, training_graph
from onnxqat.training.training_graph.memory import schedule
from tests.models import batches, model, random
from tests.training.quantizers.test_fakequant import data, quantized_graph

NET = model(
    """(float[N,16] x) => (float[N,4] y)
    { a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, v) t = Tanh(c) e = Add(t, one) y = Gemm(e, u) }""",
    w=random(16, 16), b=random(16, seed=2), v=random(16, 16, seed=3), u=random(16, 4, seed=4), one=np.float32(0.4),
)  # fmt: skip
ASYMMETRIC = [
    pytest.param("uint8", (0, 255), 128, id="uint8"),
    pytest.param("uint8", (0, 15), 3, id="4 bits"),
    pytest.param("int8", (-8, 7), 3, id="signed"),
]


@pytest.mark.parametrize(("dtype", "bounds", "zero_point"), ASYMMETRIC)
def test_gradients_are_those_of_torch_and_of_the_clip_with_frozen_rounding(dtype, bounds, zero_point):
    scale, shape = np.array(0.1, np.float32), (6, 5, 7)
    x, dy = data(shape, scale, np.array(zero_point), bounds, None)
    codes = np.rint(x / scale)
    dy[np.isin(codes + zero_point, bounds)] = 0  # codes at the ends are where the clip has no derivative
    graph = quantized_graph(shape, dtype, bounds, None, (), np.array(zero_point))
    add_floats(graph)
    call_quantizers(graph)
    names = ["x", "scale", "zero_point_trained"]
    trained = differentiate(graph, "loss", names)
    schedule(trained, ["loss"])
    start = np.array(zero_point + 0.2, np.float32)  # it is rounded
    given = dict(zip([*names, "dy"], [x, scale, start, dy], strict=True))
    dx, dscale, dzero = session(trained, exact_options()).run([f"{name}_grad" for name in names], given)

    tensors = [torch.tensor(array, requires_grad=True) for array in (x, scale[None], np.float32([zero_point]))]
    torch._fake_quantize_learnable_per_tensor_affine(*tensors, *bounds, 1.0).backward(torch.tensor(dy))
    np.testing.assert_array_equal(dx, tensors[0].grad)
    np.testing.assert_allclose([dscale, dzero], [float(one.grad) for one in tensors[1:]], rtol=1e-4)

    def loss(z):
        return np.sum(dy * scale * np.clip(codes, bounds[0] - z, bounds[1] - z), dtype=np.float64)

    assert clipped(x, scale, np.array(zero_point), *bounds).mean() > 0.2
    np.testing.assert_allclose(dzero, (loss(zero_point + 0.1) - loss(zero_point - 0.1)) / 0.2, rtol=1e-4)


def inserted(**settings):
    return insert(
        NET, batches(NET), Config(activation_bits=4, first_last_bits=None, output_correction="none", **settings)
    )


def trained(qdq, *, steps=3, learn=True, **options):
    trainer = Trainer(qdq, "mse", AdamW(lr=2e-2), learn_zero_points=learn, **options)
    for batch in batches(NET)[:steps]:
        trainer.step(labelled(batch))
    return trainer


def labelled(batch):
    return {**batch, "label": np.ones((len(batch["x"]), 4), np.float32)}


def zero_points(proto):
    found = [one for one in quantizers(io.load(proto)) if not one.is_weight]
    return {str(one.source.name): (int(one.zero_points), one.qmin) for one in found}


def test_trained_zero_points_are_integers_of_the_model_that_answers_as_in_training():
    qdq = inserted()
    trainer = trained(qdq)
    after, before = trainer.model(), zero_points(qdq)
    moved = {name for name, (code, _) in zero_points(after).items() if code != before[name][0]}
    assert moved
    assert all(code > lowest for name, (code, lowest) in zero_points(after).items() if name in moved)
    assert [one.name for one in after.graph.initializer if one.name.endswith("_trained")] == []
    (batch, *_) = batches(NET)
    answer = Inference(after)(batch)["y"]
    assert trainer.evaluate([labelled(batch)])["loss"] == pytest.approx(float(np.mean((answer - 1) ** 2)), rel=1e-6)


def test_zero_points_stay_behind_relu_and_unless_they_are_asked_for():
    qdq = inserted()
    before, after = zero_points(qdq), zero_points(trained(qdq).model())
    assert [after[name] for name, (code, lowest) in before.items() if code == lowest] == [(0, 0)]
    assert zero_points(trained(qdq, learn=False).model()) == before


def test_a_model_whose_codes_are_all_symmetric_is_refused():
    qdq = insert(NET, batches(NET), Config(target="tensorrt"))
    assert {code for code, _ in zero_points(qdq).values()} == {0}
    with pytest.raises(InputError, match="learn_zero_points: the model has no zero point that training may move"):
        trained(qdq)


def test_several_processes_begin_with_the_parameters_of_the_first():
    graph = training_graph(load_qdq(inserted(), learn_zero_points=True), "mse")
    first = graph.initial
    first[:4] += 1  # of the first weight
    others = SimpleNamespace(size=2, check_same=lambda *given: None, broadcast=lambda array: np.copyto(array, first))
    np.testing.assert_array_equal(same_graph(graph, others).initial, first)


def test_gradients_are_the_same_where_quantizers_are_computed_again():
    qdq, (batch, *_) = inserted(), batches(NET)
    found = [
        Trainer(qdq, "mse", learn_zero_points=True, memory=memory).gradients(labelled(batch))[1]
        for memory in ("auto", "low")
    ]
    learned = [name for name in found[0] if name.endswith("_trained")]
    assert any(found[0][name] for name in learned)
    assert [found[0][name] for name in learned] == [found[1][name] for name in learned]


def test_a_resumed_run_ends_with_the_same_zero_points(tmp_path):
    qdq = inserted()
    whole = trained(qdq)
    part = trained(qdq, steps=2)
    part.save(tmp_path / "checkpoint")
    resumed = Trainer.restore(tmp_path / "checkpoint")
    resumed.step(labelled(batches(NET)[2]))
    assert resumed.model().SerializeToString() == whole.model().SerializeToString()
