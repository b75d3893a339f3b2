"""Axes of classes and samples, and the activation behind an output: losses against PyTorch's."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.data.labels import Labelling
from onnxqat.errors import InputError
from onnxqat.graph.types import infer
from onnxqat.runtime import run_exactly
from onnxqat.training.training_graph.logits import CLASS_AXIS
from onnxqat.training.training_graph.loss_inputs import LABEL, TEACHER
from onnxqat.training.training_graph.losses import LOSS, attach_loss
from tests.models import model, random

F = torch.nn.functional
Z = random(6, 4, scale=2.0)
CLASSES, SIDES = np.array([0, 3, 1, 1, 2, 0]), (random(6, 4, seed=1) > 0).astype(np.float32)
PLACES = {
    "ax": np.array([1]),
    "flat": np.array([0, -1]),
    "lo": np.float32(1e-7),
    "hi": np.float32(1),
    "s": np.float32(1 / 255),
}
PLACES |= {"zp": np.uint8(0), "ax2": np.array([2])}


def loss_and_gradient(proto, loss, feeds, **said):
    """The loss, and its gradient by the factor `w` that every model here multiplies its input by."""
    graph = ir.from_proto(proto)
    infer(graph)
    attach_loss(graph, loss, Labelling(**said))
    graph.graph.outputs[:] = [next(o for n in graph.graph for o in n.outputs if o.name == LOSS)]
    named = {{"label": f"{LABEL}label", "teacher_y": f"{TEACHER}y"}.get(name, name): a for name, a in feeds.items()}
    results = run_exactly(ir.to_proto(differentiate(graph, LOSS, ["w"])), {"w": np.ones(1, np.float32), **named})
    return results[LOSS], results["w_grad"]


def check(found, logits, of_torch):
    """Compares with a function of PyTorch's, from logits to a loss."""
    factor = torch.ones(1, requires_grad=True)
    expected = of_torch(torch.tensor(logits) * factor)
    expected.backward()
    np.testing.assert_allclose(found[0], expected.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(found[1], factor.grad.numpy(), rtol=1e-4, atol=1e-6)


def net(ending, shape="float[N,4] x", output="float[N,4] y"):
    return model(f"({shape}) => ({output}) {{ z = Mul(x, w) {ending} }}", w=np.ones(1, np.float32), **PLACES)


BEHIND = {
    "nothing": "{a} = y",
    "Reshape": "p = {a} y = Reshape(p, flat)",
    "Flatten": "p = {a} y = Flatten(p)",
    "Unsqueeze and Squeeze": "p = {a} q = Unsqueeze(p, ax) y = Squeeze(q, ax)",
    "two Transposes": "p = {a} q = Transpose<perm=[1,0]>(p) y = Transpose<perm=[1,0]>(q)",
    "Clip": "p = {a} y = Clip(p, lo, hi)",
    "Max": "p = {a} y = Max(p, lo)",
    "Cast": "p = {a} q = Cast<to=10>(p) y = Cast<to=1>(q)",
    "its quantizer": "p = {a} q = QuantizeLinear(p, s, zp) y = DequantizeLinear(q, s, zp)",
    "all of them": "p = {a} q = Clip(p, lo, hi) r = QuantizeLinear(q, s, zp) t = DequantizeLinear(r, s, zp) y = Reshape(t, flat)",
}
BEHIND["nothing"] = "y = {a}"


@pytest.mark.parametrize("ending", BEHIND.values(), ids=BEHIND)
def test_cross_entropy_finds_the_logits_of_softmax_behind(ending):
    proto = net(ending.format(a="Softmax<axis=-1>(z)"))
    found = loss_and_gradient(proto, "cross_entropy", {"x": Z, "label": CLASSES})
    check(found, Z, lambda z: F.cross_entropy(z, torch.tensor(CLASSES)))


@pytest.mark.parametrize("ending", BEHIND.values(), ids=BEHIND)
def test_bce_finds_the_logits_of_sigmoid_behind(ending):
    proto = net(ending.format(a="Sigmoid(z)"))
    found = loss_and_gradient(proto, "bce_with_logits", {"x": Z, "label": SIDES})
    check(found, Z, lambda z: F.binary_cross_entropy_with_logits(z, torch.tensor(SIDES)))


def test_distilling_finds_the_logits_of_softmax_behind_too():
    proto = net(BEHIND["all of them"].format(a="Softmax<axis=-1>(z)"))
    teacher = torch.tensor(random(6, 4, seed=3)).softmax(1)
    found = loss_and_gradient(proto, "distill", {"x": Z, "teacher_y": teacher.numpy()})
    check(found, Z, lambda z: F.kl_div(z.log_softmax(1), teacher, reduction="batchmean"))


def test_a_softmax_that_is_turned_keeps_its_classes():
    proto = net("p = Softmax<axis=-1>(z) y = Transpose<perm=[0,2,1]>(p)", "float[N,5,4] x", "float[N,4,5] y")
    z, label = random(3, 5, 4, scale=2.0), np.random.default_rng(0).integers(0, 4, (3, 5))
    found = loss_and_gradient(proto, "cross_entropy", {"x": z, "label": label})
    check(found, z, lambda z: F.cross_entropy(z.transpose(1, 2), torch.tensor(label)))


@pytest.mark.parametrize(
    ("ending", "loss", "words"),
    [
        ("y = Sigmoid(z)", "cross_entropy", "comes from Sigmoid.*use 'bce_with_logits'"),
        ("y = Softmax<axis=-1>(z)", "bce_with_logits", "comes from Softmax.*use 'cross_entropy'"),
        ("p = Softmax<axis=-1>(z) y = Slice(p, ax, ax2, ax)", "bce_with_logits", "left out or put together"),
    ],
    ids=["Sigmoid", "Softmax", "one of two classes"],
)
def test_probabilities_are_not_taken_for_logits(ending, loss, words):
    graph = ir.from_proto(net(ending))
    infer(graph)
    with pytest.raises(InputError, match=words):
        attach_loss(graph, loss)


def test_classes_that_are_put_together_with_tokens_are_refused():
    graph = ir.from_proto(net("p = Softmax<axis=-1>(z) y = Flatten(p)", "float[N,5,4] x", "float[N,20] y"))
    infer(graph)
    with pytest.raises(InputError, match="put together"):
        attach_loss(graph, "cross_entropy")


SHAPES = {"tokens": (3, 5, 4), "pixels, classes last": (2, 3, 3, 4), "pixels": (2, 4, 3, 3), "time first": (5, 3, 4)}


@pytest.mark.parametrize("told", ["given", "by labels"])
@pytest.mark.parametrize("ignored", [None, -100, 255])
@pytest.mark.parametrize(
    ("name", "axis"), [("tokens", 2), ("pixels, classes last", 3), ("pixels", 1), ("time first", 2)]
)
def test_cross_entropy_is_along_the_class_axis(name, axis, ignored, told):
    shape = SHAPES[name]
    names = {"time first": "T,N"}.get(name, "N,L")
    rest = "" if len(shape) == 3 else f",{shape[2]}"
    dims = f"{names}{rest},4" if axis != 1 else "N,4,H,W"
    proto = net("y = Identity(z)", f"float[{dims}] x", f"float[{dims}] y")
    z, label = random(*shape, scale=2.0), np.random.default_rng(0).integers(0, 4, np.delete(shape, axis))
    if ignored is not None:
        label[:, 1:] = ignored
    said = {"class_axis": axis} if told == "given" else {}
    feeds = {"x": z, "label": label, **({} if said else {CLASS_AXIS: np.array([axis])})}
    found = loss_and_gradient(proto, "cross_entropy", feeds, ignore_label=ignored, **said)
    ignore = {} if ignored is None else {"ignore_index": ignored}
    check(found, z, lambda z: F.cross_entropy(z.movedim(axis, 1), torch.tensor(label), **ignore))


def test_bce_leaves_out_what_does_not_count():
    label = SIDES.copy()
    label[2:] = 255
    found = loss_and_gradient(net("y = Identity(z)"), "bce_with_logits", {"x": Z, "label": label}, ignore_label=255)
    check(found, Z, lambda z: F.binary_cross_entropy_with_logits(z[:2], torch.tensor(SIDES[:2])))


def test_a_class_axis_other_than_that_of_the_softmax_is_refused():
    graph = ir.from_proto(net("y = Softmax<axis=-1>(z)", "float[N,5,4] x", "float[N,5,4] y"))
    with pytest.raises(InputError, match="class_axis is 1, but the model's Softmax is along axis 2"):
        attach_loss(graph, "cross_entropy", Labelling(class_axis=1))


MASK = np.array([0, 0, -np.inf, 0], np.float32)


def test_classes_masked_by_infinity_have_no_part_in_cross_entropy():
    label = np.array([0, 3, 1, 1, 3, 0])
    proto = model("(float[N,4] x) => (float[N,4] y) { z = Mul(x, w) y = Add(z, m) }", w=np.ones(1, np.float32), m=MASK)
    found = loss_and_gradient(proto, "cross_entropy", {"x": Z, "label": label})
    check(found, Z, lambda z: F.cross_entropy(z + torch.tensor(MASK), torch.tensor(label)))


@pytest.mark.parametrize(
    "ending", ["p = Add(z, m) y = Softmax<axis=-1>(p)", "y = Add(z, m)"], ids=["Softmax", "values"]
)
def test_places_that_teacher_and_student_mask_by_infinity_count_nothing(ending):
    proto = model(f"(float[N,4] x) => (float[N,4] y) {{ z = Mul(x, w) {ending} }}", w=np.ones(1, np.float32), m=MASK)
    other = random(6, 4, seed=5)
    kept = [0, 1, 3]
    if "Softmax" in ending:
        teacher = (torch.tensor(other) + torch.tensor(MASK)).softmax(1)
        expected = lambda z: F.kl_div(z[:, kept].log_softmax(1), teacher[:, kept], reduction="batchmean")  # noqa: E731
    else:
        teacher = torch.tensor(other) + torch.tensor(MASK)
        expected = lambda z: ((z - torch.tensor(other))[:, kept] ** 2).sum() / Z.size  # noqa: E731
    found = loss_and_gradient(proto, "distill", {"x": Z, "teacher_y": teacher.numpy()})
    check(found, Z, expected)
