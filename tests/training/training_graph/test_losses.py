import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript import opset17 as op
from onnxscript import script
from onnxscript.values import Opset

from onnxqat.errors import InputError
from onnxqat.runtime import exact_options, session
from onnxqat.training.training_graph import named_losses
from onnxqat.training.training_graph.loss_inputs import LABEL, TEACHER
from onnxqat.training.training_graph.losses import LOSS, attach_loss
from onnxqat.training.training_graph.memory import schedule
from onnxqat.training.training_graph.named_losses import NamedLoss
from tests.models import model, random

F = torch.nn.functional
Z = random(5, 4, seed=1, scale=2.0)
CLASSES = np.array([0, 3, 1, 1, 2])
TARGETS = np.random.default_rng(2).uniform(0, 1, (5, 4)).astype(np.float32)


def loss_of(body, loss, feeds):
    graph = ir.from_proto(model(body))
    attached = attach_loss(graph, loss)
    graph.graph.outputs[:] = [next(o for n in graph.graph for o in n.outputs if o.name == LOSS)]
    schedule(graph, [LOSS])
    loaded = session(graph, exact_options())
    named = {
        name.removeprefix(LABEL).replace(TEACHER, "teacher_"): name
        for name in (value.name for value in loaded.get_inputs())
    }
    return loaded.run(None, {named[name]: array for name, array in feeds.items()})[0], attached


IDENTITY = "(float[N,4] x) => (float[N,4] y) { y = Identity (x) }"
LOGITS = torch.tensor(Z)


@pytest.mark.parametrize(
    ("loss", "label", "expected"),
    [
        pytest.param("cross_entropy", CLASSES, F.cross_entropy(LOGITS, torch.tensor(CLASSES)), id="cross_entropy"),
        pytest.param("mse", TARGETS, F.mse_loss(LOGITS, torch.tensor(TARGETS)), id="mse"),
        pytest.param("l1", TARGETS, F.l1_loss(LOGITS, torch.tensor(TARGETS)), id="l1"),
        pytest.param(
            "bce_with_logits",
            TARGETS,
            F.binary_cross_entropy_with_logits(LOGITS, torch.tensor(TARGETS)),
            id="bce_with_logits",
        ),
        pytest.param(
            ["mse", "l1"],
            TARGETS,
            F.mse_loss(LOGITS, torch.tensor(TARGETS)) + F.l1_loss(LOGITS, torch.tensor(TARGETS)),
            id="a sum",
        ),
        pytest.param(
            {"mse": 2, "l1": 0.5},
            TARGETS,
            2 * F.mse_loss(LOGITS, torch.tensor(TARGETS)) + 0.5 * F.l1_loss(LOGITS, torch.tensor(TARGETS)),
            id="a weighted sum",
        ),
    ],
)
def test_a_loss_is_that_of_torch(loss, label, expected):
    value, _ = loss_of(IDENTITY, loss, {"x": Z, "label": label})
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("activation", ["Softmax", "LogSoftmax"])
def test_cross_entropy_takes_what_comes_before_softmax_as_logits(activation):
    body = f"(float[N,4] x) => (float[N,4] y) {{ y = {activation} <axis=-1> (x) }}"
    value, _ = loss_of(body, "cross_entropy", {"x": Z, "label": CLASSES})
    np.testing.assert_allclose(value, F.cross_entropy(LOGITS, torch.tensor(CLASSES)).numpy(), rtol=1e-6)


def test_bce_takes_what_comes_before_sigmoid_as_logits():
    body = "(float[N,4] x) => (float[N,4] y) { y = Sigmoid (x) }"
    value, _ = loss_of(body, "bce_with_logits", {"x": Z, "label": TARGETS})
    expected = F.binary_cross_entropy_with_logits(LOGITS, torch.tensor(TARGETS)).numpy()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_distilling_logits_is_the_divergence_of_their_distributions():
    body = (
        "(float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> { y = MatMul (x, w) }"
    )
    teacher = random(5, 4, seed=3)
    value, attached = loss_of(body, "distill", {"x": Z, "teacher_y": teacher})
    expected = F.kl_div(LOGITS.log_softmax(1), torch.tensor(teacher).softmax(1), reduction="batchmean")
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5)
    assert attached.distilled == ("y",)
    assert not attached.labels


def test_distilling_probabilities_is_their_divergence():
    body = "(float[N,4] x) => (float[N,4] y) { y = Softmax <axis=-1> (x) }"
    teacher = torch.tensor(random(5, 4, seed=3)).softmax(1)
    value, _ = loss_of(body, "distill", {"x": Z, "teacher_y": teacher.numpy()})
    expected = F.kl_div(LOGITS.log_softmax(1), teacher, reduction="batchmean")
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5)


def test_distilling_anything_else_is_the_squared_error():
    teacher = random(5, 4, seed=3)
    value, _ = loss_of("(float[N,4] x) => (float[N,4] y) { y = Tanh (x) }", "distill", {"x": Z, "teacher_y": teacher})
    np.testing.assert_allclose(value, F.mse_loss(LOGITS.tanh(), torch.tensor(teacher)).numpy(), rtol=1e-5)


@script(Opset("user", 1), default_opset=op)
def largest_error(y, target):
    return op.ReduceMax(op.Abs(y - target), keepdims=0)


@pytest.mark.parametrize(
    "form", [largest_error, largest_error.to_function_proto()], ids=["onnxscript", "FunctionProto"]
)
def test_a_users_function_is_the_loss(form):
    value, attached = loss_of(IDENTITY, form, {"x": Z, "target": TARGETS})
    np.testing.assert_allclose(value, np.abs(Z - TARGETS).max(), rtol=1e-6)
    assert attached.labels == {"target": np.float32}


class SickFunction:
    def to_function_proto(self):
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("accuracy", "accuracy"),
        ([], "none given"),
        ({"mse": -1}, "positive"),
        (["cross_entropy", "mse"], "two types"),
        (onnx.FunctionProto(), "takes 0 inputs"),
        (len, "neither a name nor"),
        (SickFunction(), "cannot be made an ONNX function .it ends the process, with status 0.; fix the function"),
    ],
    ids=[
        "unknown",
        "none",
        "negative weight",
        "labels of two types",
        "empty function",
        "not a function of ONNX",
        "exits",
    ],
)
def test_a_loss_that_does_not_fit_is_refused(loss, words):
    with pytest.raises(InputError, match=words):
        attach_loss(ir.from_proto(model(IDENTITY)), loss)


def test_a_row_of_the_table_is_all_that_a_new_loss_needs(monkeypatch):
    row = NamedLoss(lambda op, site: op.ReduceMean(op.Abs(site.output), keepdims=0), over="all")
    monkeypatch.setitem(named_losses.NAMED_LOSSES, "sparsity", row)
    body = "(float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity (x) z = Neg (x) }"
    value, attached = loss_of(body, {"sparsity": 0.5}, {"x": Z})
    np.testing.assert_allclose(value, np.abs(Z).mean(), rtol=1e-6)
    assert (attached.labels, attached.distilled, attached.counts_accuracy) == ({}, (), False)
    with pytest.raises(InputError, match=r"use one of cross_entropy, .*, sparsity, or"):
        loss_of(body, "sparse", {"x": Z})
