"""Names in the user's model that this package gives as well."""

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.errors import InputError
from tests.models import batches, model, outputs, random

LAYERS = {"w": random(8, 6), "b": random(6), "v": random(6, 3), "d": random(3)}
#: Names of this package, in places of the model: `x` input, `r` between, `y` output, `w` weight.
CLASHES = [
    ("r", "label"),
    ("y", "label"),
    ("w", "label"),
    ("x", "teacher_y"),
    ("r", "teacher_y"),
    ("x", "onnxqat_loss"),
    ("y", "onnxqat_loss"),
    ("r", "w_grad"),
    ("y", "w_grad"),
    ("r", "h_grad"),
    ("x", "h_grad"),
    ("w", "h_grad"),
    ("r", "x_scale"),
    ("r", "w_quantized"),
    ("y", "y_unquantized"),
    ("r", "b_rounded"),
    ("r", "x_dq_again"),
]


def named(place: str, name: str) -> onnx.ModelProto:
    names = {one: one for one in ("x", "h", "r", "y", *LAYERS)} | {place: name}
    nodes = "{h} = Gemm({x}, {w}, {b}) {r} = Relu({h}) {y} = Gemm({r}, {v}, {d})".format(**names)
    proto = model(
        f"(float[N,8] {names['x']}) => (float[N,3] {names['y']}) {{ {nodes} }}",
        **{names[key]: array for key, array in LAYERS.items()},
    )
    proto.graph.node[1].name = name
    return proto


@pytest.mark.parametrize(("place", "name"), CLASHES, ids=[f"{place} is {name}" for place, name in CLASHES])
def test_model_with_a_name_of_ours_is_trained_like_any_other(place, name):
    loss = "distill" if name == "teacher_y" else "cross_entropy"
    proto, plain = named(place, name), named("x", "x")
    (given,) = batches(proto, 1, rows=16)
    labels = {"label": np.arange(16) % 3} if loss == "cross_entropy" else {}
    losses = []
    for one, batch in ((proto, given), (plain, {"x": next(iter(given.values()))})):
        trainer = onnxqat.Trainer(onnxqat.insert(one, [batch]), loss=loss)
        losses.append([trainer.step({**batch, **labels}), trainer.evaluate([{**batch, **labels}])])
    assert losses[0] == losses[1]
    trained = trainer.model()
    onnx.checker.check_model(onnxqat.fold(trained))


def test_gradients_are_told_from_an_output_of_their_name():
    proto = named("y", "w_grad")
    (batch,) = batches(proto, 1)
    results, found = onnxqat.gradients(proto, batch, wrt=["w"])
    assert list(results) == ["w_grad"]
    np.testing.assert_allclose(results["w_grad"], outputs(proto, batch)[0], rtol=1e-5, atol=1e-6)
    assert found["w"].shape == (8, 6)


def test_input_that_is_called_as_the_labels_are_is_refused_by_name():
    proto = named("x", "label")
    (batch,) = batches(proto, 1)
    qdq = onnxqat.insert(proto, [batch])
    with pytest.raises(
        InputError, match="its labels are called 'label', as an input of the model is; rename the input"
    ):
        onnxqat.Trainer(qdq, loss="cross_entropy")
