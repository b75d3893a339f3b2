import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import safetensors.torch
import torch
import torch._dynamo.testing
from onnx import numpy_helper
from torch import library
from torch.nn import functional

import onnxqat
from models import fashion_mnist
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.torch import export
from onnxqat.torch import as_module, quantize, to_model
from onnxqat.torch.graph import Memory, as_tensor, as_values
from onnxqat.torch.operator import bound, run_backward
from onnxqat.torch.operator import run as run_operator
from onnxqat.training.trainer import Trainer
from tests.models import model, outputs, random
from tests.test_model_shapes import SHAPES, data
from tests.training.test_quantized_gradients import torch_gradients
from tests.training.test_trainer import BODY, WEIGHTS, batches


def quantized(body, config=None, **weights):
    proto = model(body, **weights)
    shapes = {i.name: [d.dim_value or 4 for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    return onnxqat.insert(proto, [{name: random(*shape, scale=1.0) for name, shape in shapes.items()}], config)


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)])


@pytest.fixture
def module(qdq):
    return as_module(qdq)


BATCH = batches(1)[0]
X, LABEL = torch.tensor(BATCH["x"]), torch.tensor(BATCH["label"])
TARGET = torch.tensor(random(16, 5, scale=1.0))


def same(parameter, initializer):
    """A scalar initializer is a parameter of one element."""
    return np.array_equal(np.atleast_1d(parameter), np.atleast_1d(initializer))


def gradients(module):
    return {name: parameter.grad.numpy().copy() for name, parameter in module.named_parameters()}


def test_parameters_are_the_models_initializers_and_buffers_its_zero_points(qdq, module):
    arrays = {i.name: numpy_helper.to_array(i) for i in qdq.graph.initializer}
    floats = {name for name, array in arrays.items() if array.dtype == np.float32}
    state = module.state_dict()
    assert {name for name, _ in module.named_parameters()} == floats
    assert set(state) == floats | {name for name in arrays if name.endswith("_zero_point")}
    assert all(same(tensor, arrays[name]) for name, tensor in state.items())
    assert {name: module.kinds[name] for name in ("w1", "b1", "w1_scale", "x_scale")} == {
        "w1": "weight",
        "b1": "other",
        "w1_scale": "scale",
        "x_scale": "scale",
    }


def test_answers_are_those_of_the_graph(module):
    (expected,) = outputs(to_model(module), {"x": BATCH["x"]})
    with torch.no_grad():
        np.testing.assert_array_equal(module(X).numpy(), expected)
    np.testing.assert_array_equal(module(X).detach().numpy(), expected)
    np.testing.assert_array_equal(module(x=X).detach().numpy(), expected)


@pytest.mark.parametrize(
    ("loss", "in_torch", "label"),
    [("mse", functional.mse_loss, TARGET), ("l1", functional.l1_loss, TARGET)],
    ids=["mse", "l1"],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_bit_for_bit_those_of_the_trainer(bits, loss, in_torch, label):
    config = onnxqat.Config(weight_bits=bits, activation_bits=bits)
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], config)
    module = as_module(qdq)
    in_torch(module(X), label).backward()
    _, expected = Trainer(qdq, loss=loss).gradients({"x": BATCH["x"], "label": label.numpy()})
    found = gradients(module)
    assert {name for name, array in expected.items() if not same(found[name], array)} == set()
    assert set(found) == set(expected)


@pytest.mark.parametrize(
    ("name", "images"),
    [("resnet20", fashion_mnist.calibration), ("separable", fashion_mnist.calibration_nhwc)],
    ids=["ResNet-20", "depthwise-separable"],
)
def test_gradients_of_real_models_are_bit_for_bit_those_of_the_trainer(name, images):
    batch = {"image": next(iter(images()))["image"][:16]}
    qdq = onnxqat.insert(Path(__file__).parents[1] / "models" / f"{name}.onnx", [batch])
    module = as_module(qdq, threads=1)
    target = torch.tensor(random(16, 10))
    functional.mse_loss(module(torch.tensor(batch["image"])), target).backward()
    _, expected = Trainer(qdq, loss="mse", threads=1).gradients({**batch, "label": target.numpy()})
    found = gradients(module)
    assert set(found) == set(expected)
    assert [key for key in expected if not same(found[key], expected[key])] == []


def test_cross_entropys_own_gradient_is_rounded_differently_in_torch(qdq, module):
    functional.cross_entropy(module(X), LABEL).backward()
    _, expected = Trainer(qdq).gradients(BATCH)
    for name, gradient in gradients(module).items():
        # torch and ONNX Runtime sum the softmax's exponentials in another order; the graph behind it is the same
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-6 * np.abs(expected[name]).max())


def test_gradients_are_those_of_torch_for_inputs_too(qdq, module):
    x = X.clone().requires_grad_()
    functional.cross_entropy(module(x), LABEL).backward()
    _, expected = torch_gradients(to_model(module), BATCH, inputs=["x"])  # its biases lie on their grid
    for name, gradient in {**gradients(module), "x": x.grad.numpy()}.items():
        # float32 convolutions of two libraries; a rounding that falls the other way moves a gradient by a share of a step
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max() + 1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m: torch.optim.AdamW(m.groups(lr=3e-3)),
        lambda m: torch.optim.SGD(m.groups(lr=0.01), momentum=0.9),
        lambda m: torch.optim.RMSprop(m.groups(lr=1e-3), foreach=True),
    ],
    ids=["AdamW", "SGD", "RMSprop"],
)
def test_a_loop_of_torchs_own_trains_it(optimizer, qdq, module):
    stepper = optimizer(module)
    losses = []
    for batch in batches() * 8:
        stepper.zero_grad()
        loss = functional.cross_entropy(module(torch.tensor(batch["x"])), torch.tensor(batch["label"]))
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    trained = to_model(module)
    assert Trainer(trained).evaluate(batches())["loss"] < Trainer(qdq).evaluate(batches())["loss"]
    with torch.no_grad():
        np.testing.assert_array_equal(module(X).numpy(), outputs(trained, {"x": BATCH["x"]})[0])


def test_groups_give_scales_rates_in_their_own_measure_and_decay_to_weights_alone(module):
    groups = module.groups(lr=0.01, weight_decay=0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rate) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        kind = module.kinds[name]
        expected = 0.01 * parameter.mean().item() if kind == "scale" else 0.01
        assert rate[id(parameter)] == pytest.approx(expected)
        assert decay[id(parameter)] == (0.1 if kind == "weight" else 0.0)


def test_the_model_comes_back_as_it_was(qdq, module):
    assert to_model(module) == Trainer(qdq).model()


def test_the_trained_model_is_folded_and_verified(module):
    torch.optim.SGD(module.parameters(), lr=1e-3).step(lambda: functional.mse_loss(module(X), TARGET).backward())
    trained = to_model(module)
    report = onnxqat.verify(trained, onnxqat.fold(trained), batches(2))
    assert report.agreement > 0.9


@pytest.mark.parametrize("rows", [1, 3, 16, 5])
def test_batches_may_have_any_size(rows, qdq, module):
    functional.mse_loss(module(X), TARGET).backward()
    module.zero_grad()
    functional.l1_loss(module(X[:rows]), TARGET[:rows]).backward()
    _, expected = Trainer(qdq, loss="l1").gradients({"x": BATCH["x"][:rows], "label": TARGET[:rows].numpy()})
    for name, gradient in gradients(module).items():
        # The loss of uneven parts is weighed in the trainer behind their gradients, here before.
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6 * np.abs(expected[name]).max())


def test_two_runs_before_one_backward_pass_add_up(module):
    functional.mse_loss(module(X[:8]), TARGET[:8]).backward()
    functional.mse_loss(module(X[8:]), TARGET[8:]).backward()
    apart = gradients(module)
    module.zero_grad()
    first, second = module(X[:8]), module(X[8:])
    (functional.mse_loss(first, TARGET[:8]) + functional.mse_loss(second, TARGET[8:])).backward()
    for name, gradient in gradients(module).items():
        np.testing.assert_array_equal(gradient, apart[name])


def test_a_second_backward_pass_needs_the_graph_retained(module):
    loss = functional.mse_loss(module(X), TARGET)
    loss.backward(retain_graph=True)
    once = gradients(module)
    loss.backward()
    for name, gradient in gradients(module).items():
        np.testing.assert_array_equal(gradient, 2 * once[name])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_parameter_changed_between_the_passes_is_noticed(module):
    loss = functional.mse_loss(module(X), TARGET)
    with torch.no_grad():
        module.w2.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_parameters_get_no_gradient_and_leave_the_others_as_they_are(module):
    functional.mse_loss(module(X), TARGET).backward()
    expected = gradients(module)
    frozen = ["w1", "w1_scale", "x_scale", "b2"]
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    module.zero_grad()
    functional.mse_loss(module(X), TARGET).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == (name in frozen)
        if name not in frozen:
            np.testing.assert_array_equal(parameter.grad.numpy(), expected[name])


def test_frozen_parameters_may_still_be_assigned(module):
    module.w1.requires_grad_(False)
    before = module(X).detach()
    with torch.no_grad():
        module.w1.mul_(-1)
        expected = module(X)
    assert not torch.equal(before, expected)
    np.testing.assert_array_equal(module(X).detach().numpy(), expected.numpy())


def test_without_gradients_the_forward_graph_runs_alone(module):
    with torch.no_grad():
        assert module(X).grad_fn is None
    module.requires_grad_(False)
    assert not module(X).requires_grad
    assert not module._graph.wrapped.whole._halves


def test_graphs_are_built_once(module):
    for _ in range(3):
        functional.mse_loss(module.train()(X), TARGET).backward()
        functional.mse_loss(module.eval()(X), TARGET).backward()
    assert len(module._graph.wrapped.whole._halves) == 1


def test_a_copy_has_parameters_of_its_own(module):
    twin = copy.deepcopy(module)
    expected = module(X).detach().clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    np.testing.assert_array_equal(twin(X).detach().numpy(), expected.numpy())
    assert not torch.equal(module(X).detach(), expected)


def test_state_goes_through_a_file(qdq, module, tmp_path):
    torch.optim.AdamW(module.parameters(), lr=1e-2).step(lambda: functional.mse_loss(module(X), TARGET).backward())
    safetensors.torch.save_file(module.state_dict(), tmp_path / "state.safetensors")
    fresh = as_module(qdq)
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert to_model(fresh) == to_model(module)
    assert to_model(fresh) != qdq


def test_a_module_that_has_run_is_saved_whole_and_copied(qdq, module, tmp_path):
    torch.optim.AdamW(module.parameters(), lr=1e-2).step(lambda: functional.mse_loss(module(X), TARGET).backward())
    torch.save(module, tmp_path / "module.pt")
    copies = [torch.load(tmp_path / "module.pt", weights_only=False), copy.deepcopy(module)]
    module.zero_grad()
    functional.mse_loss(module(X), TARGET).backward()
    for one in copies:
        one.zero_grad()
        functional.mse_loss(one(X), TARGET).backward()
        assert to_model(one) == to_model(module)
        assert to_model(one) != qdq
        assert torch.equal(one.w2.grad, module.w2.grad)


def test_state_carries_one_calibration_to_a_module_of_another(qdq):
    """As DistributedDataParallel does, from the first process to the others."""
    moved = [{"x": b["x"] * 0.3 + 1} for b in batches(2)]
    one, other = as_module(qdq), as_module(onnxqat.insert(model(BODY, **WEIGHTS), moved))
    assert not torch.equal(one.x_zero_point, other.x_zero_point)
    other(X)
    for source, target in zip(
        (*one.parameters(), *one.buffers()), (*other.parameters(), *other.buffers()), strict=True
    ):
        with torch.no_grad():
            target.copy_(source)
    for module in (one, other):
        functional.mse_loss(module(X), TARGET).backward()
    assert torch.equal(one(X), other(X))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert to_model(one) == to_model(other)


@pytest.mark.parametrize(
    "zero_point", [torch.tensor(300, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)], ids=["value", "shape"]
)
def test_zero_points_that_no_code_has_are_refused(zero_point, module):
    module.x_zero_point = zero_point
    with pytest.raises(InputError, match="zero point 'x_zero_point': is not one of this model"):
        module(X)


def test_zero_points_that_are_constants_of_nodes_are_buffers_too(qdq, module):
    written = type(qdq)()
    written.CopyFrom(qdq)
    (stored,) = [i for i in written.graph.initializer if i.name == "x_zero_point"]
    written.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["x_zero_point"], value=stored))
    written.graph.initializer.remove(stored)
    assert torch.equal(as_module(written).x_zero_point, module.x_zero_point)


class Network(torch.nn.Module):
    """With BatchNormalization, which `insert` folds into the convolution."""

    def __init__(self, *, normalized):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.bn = torch.nn.BatchNorm2d(4) if normalized else torch.nn.Identity()
        self.head = torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))))


def exported(network):
    with torch.no_grad():
        if isinstance(network.bn, torch.nn.BatchNorm2d):
            network.bn.weight.uniform_(0.5, 2)
        network(torch.randn(64, 3, 8, 8) * 2 + 1)
    proto = export(network.eval(), X[:2])
    return as_module(onnxqat.insert(proto, [{proto.graph.input[0].name: BATCH["x"]}]))


@pytest.mark.parametrize("kept", [lambda key: True, lambda key: "bn" not in key], ids=["whole", "without statistics"])
@pytest.mark.parametrize("around", [lambda m: m, lambda m: torch.nn.Sequential(m)], ids=["alone", "in a Sequential"])
def test_the_state_of_a_float_model_whose_normalization_was_folded_is_refused(kept, around):
    network = Network(normalized=True)
    module = exported(network)
    prefix = "" if around(module) is module else "0."
    state = {prefix + key: tensor for key, tensor in network.state_dict().items() if kept(key)}
    with pytest.raises(InputError, match=r"is a float model's, whose normalizations are folded"):
        around(module).load_state_dict(state, strict=False)
    module.load_state_dict(module.state_dict())


def test_a_state_into_which_a_float_models_weights_were_merged_is_refused():
    network = Network(normalized=True)
    module = exported(network)
    merged = module.state_dict()
    merged.update({key: tensor for key, tensor in network.state_dict().items() if key in merged})
    with pytest.raises(InputError, match=r"holds 'conv.weight' as it was before"):
        module.load_state_dict(merged)
    trained = {
        key: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for key, t in module.state_dict().items()
    }
    module.load_state_dict(trained)
    assert torch.equal(module.conv.weight, trained["conv.weight"])


def test_the_state_of_a_float_model_without_normalization_is_taken():
    network = Network(normalized=False)
    module = exported(network)
    with torch.no_grad():
        network.conv.weight.mul_(0.9)
    module.load_state_dict(network.state_dict(), strict=False)
    assert torch.equal(module.conv.weight, network.conv.weight)


def test_quantization_begins_at_its_epochs_with_the_trainers_gradients():
    config = onnxqat.Config(weight_start_epoch=1, activation_start_epoch=2)
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], config)
    module = as_module(qdq)
    for epoch in range(3):
        module.zero_grad()
        functional.mse_loss(module(X), TARGET).backward()
        trainer = Trainer(qdq, loss="mse")
        trainer.schedule.plan(epochs=3, steps_per_epoch=1)
        for _ in range(epoch):
            trainer.schedule.epoch_step()
        _, expected = trainer.gradients({"x": BATCH["x"], "label": TARGET.numpy()})
        for name, gradient in gradients(module).items():
            np.testing.assert_array_equal(gradient, expected[name])
        left = {entry.key: entry.value for entry in to_model(module).metadata_props}
        assert int(left.get("onnxqat.activation_start_epoch", 0)) == 2 - epoch
        module.schedule.epoch_step()


def test_statistics_compare_with_the_model_that_the_module_was_made_of(module):
    for step in range(2):
        statistics = module.statistics([{"x": BATCH["x"], "label": BATCH["label"]}])
        assert statistics.rows == 16
        assert (max(one.scale_drift for one in statistics.quantizers) > 0) == bool(step)
        torch.optim.SGD(module.parameters(), lr=0.1).step(lambda: functional.mse_loss(module(X), TARGET).backward())


def test_one_call_quantizes_a_module_on_its_loader():
    network = Network(normalized=True).eval()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABEL), batch_size=8)
    module = quantize(network, X[:1], loader, onnxqat.Config(target="openvino")).train()
    proto = onnxqat.insert(export(network, X[:1]), loader, onnxqat.Config(target="openvino"))
    assert to_model(module).graph == to_model(as_module(proto)).graph
    assert module.fold() == onnxqat.fold(to_model(module))
    with torch.no_grad():
        np.testing.assert_allclose(module(X), network(X), atol=0.05)


RESUMED = """
import sys
import torch
import torch._dynamo.testing
import onnxqat.torch
from tests.test_torch import steps
state = torch.load(f"{sys.argv[1]}/checkpoint.pt", weights_only=True)
module = onnxqat.torch.as_module(state["structure"], threads=1)
module.load_state_dict(state["module"])
module.schedule.load_state_dict(state["schedule"])
optimizer = torch.optim.AdamW(module.groups(lr=1e-3))
optimizer.load_state_dict(state["optimizer"])
steps(module, optimizer)
torch.save([module.state_dict(), module.structure(), module.statistics().to_json()], f"{sys.argv[1]}/resumed.pt")
"""


def steps(module, optimizer):
    for batch in batches(2):
        optimizer.zero_grad()
        functional.cross_entropy(module(torch.tensor(batch["x"])), torch.tensor(batch["label"])).backward()
        optimizer.step()
    module.schedule.epoch_step()


def test_a_loop_resumes_bit_for_bit_in_a_new_process_from_its_checkpoint_alone(tmp_path):
    config = onnxqat.Config(activation_start_epoch=2)
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], config)
    module = as_module(qdq, threads=1)
    optimizer = torch.optim.AdamW(module.groups(lr=1e-3))
    steps(module, optimizer)
    state = {"module": module.state_dict(), "structure": module.structure()}
    state |= {"optimizer": optimizer.state_dict(), "schedule": module.schedule.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    steps(module, optimizer)
    subprocess.run([sys.executable, "-c", RESUMED, tmp_path], check=True, cwd=Path(__file__).parents[1])
    found, structure, statistics = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert statistics == module.statistics().to_json()  # it puts scales into their bounds, there as here
    assert all(torch.equal(tensor, found[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(structure, module.structure())


@pytest.mark.parametrize("tensor", [torch.zeros(4), torch.full((64,), 255, dtype=torch.uint8)], ids=["floats", "bytes"])
def test_a_tensor_that_is_no_structure_is_refused(tensor):
    with pytest.raises(InputError, match=r"is a tensor, but not one that structure\(\) of a module gave"):
        as_module(tensor)


@pytest.fixture(scope="module")
def compiled(qdq):
    """A module and its compiled form; Inductor compiles the loss behind it in a subprocess of its own, which is slow to start."""
    module = as_module(qdq)
    return module, torch.compile(module, fullgraph=True, backend="aot_eager")


def test_a_compiled_module_has_the_gradients_of_the_plain_one(qdq, compiled):
    module, fast = compiled
    plain = as_module(qdq)
    for rows in (16, 8, 12):  # from the second size on, the batch is a symbol
        x, y = (X[:rows].clone().requires_grad_() for _ in range(2))
        module.zero_grad(), plain.zero_grad()
        functional.mse_loss(fast(x), TARGET[:rows]).backward()
        functional.mse_loss(plain(y), TARGET[:rows]).backward()
        assert torch.equal(x.grad, y.grad)
        for name, gradient in gradients(plain).items():
            np.testing.assert_array_equal(module.get_parameter(name).grad.numpy(), gradient)


def test_a_compiled_module_puts_scales_that_step_over_zero_back_and_follows_zero_points(qdq, compiled):
    module, fast = compiled
    plain = as_module(qdq)
    for one in (module, plain):
        with torch.no_grad():
            one.w1_scale.neg_()
            one.x_zero_point.add_(3)
    assert torch.equal(fast(X[:8]), plain(X[:8]))
    assert torch.equal(module.w1_scale, plain.w1_scale)
    module.load_state_dict(as_module(qdq).state_dict())


def test_a_compiled_module_is_compiled_again_for_a_stage_and_not_for_an_epoch():
    config = onnxqat.Config(activation_start_epoch=2)
    qdq = onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], config)
    module, plain = as_module(qdq), as_module(qdq)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast, seen = torch.compile(module, fullgraph=True, backend=counter), []
    for _ in range(3):
        module.zero_grad(), plain.zero_grad()
        functional.mse_loss(fast(X), TARGET).backward()
        functional.mse_loss(plain(X), TARGET).backward()
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(module.parameters(), plain.parameters(), strict=True))
        module.schedule.epoch_step(), plain.schedule.epoch_step()
        seen.append(counter.frame_count)
    assert seen == [1, 1, 2]


def operands(module):
    """What `onnxqat::run` is given by a call of the module."""
    x = X.clone().requires_grad_()
    shapes = module._graph.parameters
    own = {module._names[name]: parameter for name, parameter in module.named_parameters()}
    known = {"x": x} | {name: one.detach().reshape(shapes[name]).requires_grad_() for name, one in own.items()}
    known |= {name: module.get_buffer(key) for key, name in module._buffer_names.items()}
    tensors = [known[name] for name in module._graph.tensors]
    return module._graph.name, "activations weights", [tensor.requires_grad for tensor in tensors], tensors


def test_operators_do_what_they_declare(module):
    name, stage, asked, tensors = operands(module)
    library.opcheck(run_operator, (name, stage, asked, tensors))
    call = module._graph.call(stage, asked)
    found = dict(zip(call.results, run_operator(name, stage, asked, tensors), strict=True))
    known = {**dict(zip(module._graph.tensors, tensors, strict=True)), **found}
    saved = [known[one].detach() for one in call.saved(["x"])]
    library.opcheck(run_backward, (name, stage, asked, saved, [TARGET]))
    scales, others = ([known[one].detach().clone() for one in names] for names in module._graph.scales_and_others)
    bounds = [module._lowest, module._highest]
    library.opcheck(bound, (name, [-scale for scale in scales], others, bounds))


def test_a_module_computes_after_it_was_called_by_others_parameters_and_in_a_checkpoint(module):
    functional.mse_loss(module(X), TARGET).backward()
    expected = gradients(module)
    module.zero_grad()
    functional.mse_loss(torch.utils.checkpoint.checkpoint(module, X, use_reentrant=False), TARGET).backward()
    for name, gradient in gradients(module).items():
        np.testing.assert_array_equal(gradient, expected[name])
    others = {name: parameter.detach() * 0.5 for name, parameter in module.named_parameters()}
    found = torch.func.functional_call(module, others, (X,))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
        assert torch.equal(module(X), found)


def test_half_precision_in_front_of_it_is_widened(module):
    linear = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(linear(X)).sum().backward()
    assert linear.weight.grad.dtype == torch.float32


def test_a_hook_that_cannot_run_is_warned_of():
    module = exported(Network(normalized=True))
    with pytest.warns(UserWarning, match=r"register_forward_hook on 'conv': never runs"):
        module.conv.register_forward_hook(lambda *_: None)
    seen = []
    module.register_forward_hook(lambda *_: seen.append(True))
    module.conv.weight.register_hook(lambda gradient: seen.append(True))
    module(X).sum().backward()
    assert len(seen) == 2


def test_dropout_that_is_gone_is_said_once():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.5), torch.nn.Dropout(0.0)).eval()
    module = as_module(onnxqat.insert(export(network, X[:1]), [{"input": BATCH["x"]}]))
    with pytest.warns(UserWarning, match="module: dropout of '1' is gone in the ONNX graph, in training mode too"):
        module.train()
    assert module.train() is module


def test_a_module_that_returned_a_dict_does_so_quantized():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 3), torch.nn.Linear(8, 2)

        def forward(self, x):
            return {"logits": self.first(x), "embedding": self.second(x)}

    network, x = Net().eval(), torch.tensor(random(4, 8, scale=1.0))
    found = quantize(network, x, [{"x": x.numpy()}])(x)
    assert list(found) == ["logits", "embedding"]
    for name, expected in network(x).items():
        torch.testing.assert_close(found[name], expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("structure", ['["logits"]', '"tuple"'], ids=["dict", "tuple"])
def test_outputs_have_the_structure_that_the_export_knew(structure):
    proto = model(BODY, **WEIGHTS)
    onnx.helper.set_model_props(proto, {"onnxqat.outputs": structure})
    module = as_module(onnxqat.insert(proto, [{"x": BATCH["x"]}]))
    found = module(X)
    assert isinstance(found, dict if "logits" in structure else tuple)
    (logits,) = found.values() if isinstance(found, dict) else found
    assert logits.shape == (16, 5)


def test_assigned_storage_is_what_runs(module):
    state = {name: tensor * 1.25 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    np.testing.assert_array_equal(module(X).detach().numpy(), outputs(to_model(module), {"x": BATCH["x"]})[0])


@pytest.mark.parametrize("around", [lambda one: one, torch.nn.Sequential], ids=["alone", "in a module"])
def test_a_restored_module_quantizes_what_the_saved_one_did(around):
    module, restored = (
        as_module(quantized(BODY, onnxqat.Config(activation_start_epoch=1), **WEIGHTS)) for _ in range(2)
    )
    module.schedule.epoch_step()
    assert not torch.equal(module(X), restored(X))
    around(restored).load_state_dict(around(module).state_dict())
    assert torch.equal(module(X), restored(X))


def test_scales_that_step_over_zero_are_put_back():
    module = as_module(
        onnxqat.insert(
            model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)], onnxqat.Config(overflow_fix="disable")
        )
    )
    before = {name: p.detach().clone() for name, p in module.named_parameters() if module.kinds[name] == "scale"}
    scales = [p for name, p in module.named_parameters() if module.kinds[name] == "scale"]
    with torch.no_grad():
        for scale in scales:
            scale.sub_(2 * scale.max())
    trained = to_model(module)
    after = {i.name: numpy_helper.to_array(i) for i in trained.graph.initializer}
    for name, scale in before.items():
        lowest = scale.numpy() * np.float32(2.0**-14)
        if name.startswith(
            "w"
        ):  # so small a scale of the data as here calls for a larger one of the weight, for the bias's sake
            assert (after[name] >= lowest).all()
        else:
            np.testing.assert_array_equal(after[name], lowest)
    assert torch.isfinite(module(X)).all()
    Trainer(trained)


def test_scales_in_bounds_are_left_alone(module):
    versions = [parameter._version for parameter in module.parameters()]
    module(X)
    assert [parameter._version for parameter in module.parameters()] == versions


def test_dots_in_names_make_a_hierarchy():
    names = ("stem.conv.weight", "stem.conv.bias", "head.weight", "head.bias")
    arrays = dict(zip(names, (random(6, 5), random(5), random(5, 3), random(3)), strict=True))
    body = """(float[N,6] x) => (float[N,3] y) {
        h = Gemm(x, "stem.conv.weight", "stem.conv.bias")
        r = Relu(h)
        y = Gemm(r, "head.weight", "head.bias")
    }"""
    plain = body.replace('"', "").replace(".", "_")
    proto = model(plain, **{name.replace(".", "_"): array for name, array in arrays.items()})
    rename(proto, {name.replace(".", "_"): name for name in names})
    module = as_module(onnxqat.insert(proto, [{"x": random(8, 6, scale=1.0)}]))
    assert set(names) <= set(module.state_dict())
    assert module.stem.conv.weight.shape == (6, 5)
    module(torch.randn(2, 6)).sum().backward()
    assert module.stem.conv.weight.grad is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("forward", "forward_"), ("a.", "a._"), (".a", "_.a"), ("x_scale.t", "x_scale.t"), ("/a:0", "/a:0")],
)
def test_names_that_a_module_cannot_hold_get_an_underscore(name, expected):
    proto = model(
        "(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w)\n y = MatMul(h, v) }", w=random(6, 5), v=random(5, 3)
    )
    rename(proto, {"v": name})
    module = as_module(onnxqat.insert(proto, [{"x": random(8, 6, scale=1.0)}]))
    assert expected in module.state_dict()
    assert name in {i.name for i in to_model(module).graph.initializer}


def rename(proto, names):
    for initializer in proto.graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


TWO_ENDS = """(float[N,4] left, int64[N] token, float[N,4] right) => (float[N,3] total, float[N,4] gate, int64[N] winner)
{
    e = Gather(table, token)
    l = Add(left, e)
    h = MatMul(l, w)
    total = Add(h, b)
    gate = Sigmoid(right)
    winner = ArgMax<axis=1, keepdims=0>(total)
}"""


def test_several_inputs_and_outputs_of_several_types():
    module = as_module(
        onnxqat.insert(
            model(TWO_ENDS, table=random(7, 4), w=random(4, 3), b=random(3)),
            [{"left": random(5, 4), "token": np.arange(5), "right": random(5, 4, seed=1)}],
        )
    )
    right = torch.randn(5, 4, requires_grad=True)
    total, gate, winner = module(torch.randn(5, 4), torch.arange(5), right)
    assert winner.dtype == torch.int64
    assert not winner.requires_grad
    (total.sum() + (gate**2).sum()).backward()
    expected = torch.sigmoid(right)
    np.testing.assert_allclose(right.grad, (2 * expected**2 * (1 - expected)).detach(), rtol=1e-2, atol=1e-2)
    assert module.table.grad is not None


@pytest.mark.parametrize("proto", SHAPES.values(), ids=SHAPES)
def test_models_of_every_shape_answer_as_the_runtime_and_have_the_trainers_gradients(proto):
    given = data(proto)
    qdq = onnxqat.insert(proto, given)
    fixed = {initializer.name for initializer in qdq.graph.initializer}
    batch = {i.name: given[0][i.name] for i in qdq.graph.input if i.name not in fixed}
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    module = as_module(qdq, threads=1)
    found = module(**tensors)
    with torch.no_grad():
        plain = module(**tensors)
    as_tuple = [value if isinstance(value, tuple) else (value,) for value in (found, plain)]
    # of a bias that layers share, only the deployed model has one on each layer's grid
    for one, other, expected in zip(*as_tuple, outputs(onnxqat.fold(to_model(module)), batch), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), expected)
        np.testing.assert_array_equal(other.detach().numpy(), expected)
    score = as_tuple[0][0]
    if score.is_floating_point():  # the losses look at the first output
        target = torch.tensor(random(*score.shape))
        functional.mse_loss(score, target).backward()
        _, gradients = Trainer(qdq, loss="mse", threads=1).gradients({**batch, "label": target.numpy()})
        for name, parameter in module.named_parameters():
            np.testing.assert_array_equal(parameter.grad.numpy(), gradients[name])


def test_an_output_in_double_precision_has_a_gradient():
    proto = model(
        "(float[N,4] x) => (double[N,3] y) { a = MatMul(x, w)\n r = Relu(a)\n z = MatMul(r, v)\n y = Cast<to=11>(z) }",
        w=random(4, 6), v=random(6, 3),
    )  # fmt: skip
    module = as_module(onnxqat.insert(proto, [random(8, 4, scale=1.0)]))
    found = module(torch.randn(2, 4))
    assert found.dtype == torch.float64
    found.sum().backward()
    assert module.v.grad.abs().max() > 0


def test_it_is_a_part_among_others(module):
    before, after = torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Linear(5, 2)
    whole = torch.nn.Sequential(before, module, after)
    whole(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in whole.parameters())


def test_half_precision_inputs_are_widened(module):
    x = X.half().requires_grad_()
    module(x).sum().backward()
    assert x.grad.dtype == torch.float16


def test_data_parallel_takes_it_and_gives_it_back(qdq, module, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(module)
        functional.mse_loss(wrapped(X), TARGET).backward()
        assert to_model(wrapped) == Trainer(qdq).model()
    finally:
        torch.distributed.destroy_process_group()
    _, expected = Trainer(qdq, loss="mse").gradients({"x": BATCH["x"], "label": TARGET.numpy()})
    for name, gradient in gradients(module).items():
        np.testing.assert_array_equal(gradient, expected[name])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.0),
        torch.zeros(0, 3),
        torch.tensor([[True, False]]),
        torch.arange(6, dtype=torch.int32),
        torch.ones(2, requires_grad=True),
        torch.arange(6.0).reshape(2, 3).T,
    ],
    ids=["scalar", "empty", "booleans", "integers", "parameter", "transposed"],
)
def test_the_graph_reads_tensors_where_they_are(tensor):
    value = as_values({"x": tensor})["x"]
    np.testing.assert_array_equal(value.numpy(), tensor.detach().numpy(), strict=True)
    assert (value.data_ptr() == tensor.data_ptr()) is tensor.is_contiguous()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(BATCH["x"]), "input 'x': is a ndarray; give tensors"),
        (lambda m: m(X.double()), "'x' has type float64, the model takes float32"),
        (lambda m: m(X[:, :2]), r"'x' has shape \[16, 2, 8, 8\], the model takes \[any, 3, 8, 8\]"),
        (lambda m: m(X, X), "2 inputs given; the model takes x"),
        (lambda m: m(), "lacks 'x'"),
        (lambda m: m(image=X), "holds 'image', the model takes 'x'"),
        (lambda m: m.double()(X), r"tensor 'w1': is torch.float64 on cpu, .* call \.float\(\) on the module"),
        (lambda m: m.to("meta")(X), r"is torch.float32 on meta"),
    ],
    ids=["array", "type", "shape", "too many", "none", "name", "double", "device"],
)
def test_a_call_that_does_not_fit_is_named(call, message, module):
    with pytest.raises(InputError, match=message) as caught:
        call(module)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_is_not_finite_is_not_given_back(module):
    with torch.no_grad():
        module.w2[0] = float("nan")
    with pytest.raises(InputError, match="parameter 'w2': holds NaN or infinity"):
        to_model(module)


def test_another_module_is_refused():
    with pytest.raises(InputError, match="is a Linear; give the module that"):
        to_model(torch.nn.Linear(2, 2))


def test_a_float_model_is_refused():
    with pytest.raises(InputError, match="no quantizers"):
        as_module(model(BODY, **WEIGHTS))


def test_operators_without_gradient_are_named_where_one_is_asked_for(qdq):
    unknown = type(qdq)()
    unknown.CopyFrom(qdq)
    nodes = unknown.graph.node
    index = next(i for i, node in enumerate(nodes) if node.op_type == "GlobalAveragePool")
    (pooled,) = nodes[index].output
    nodes[index].output[0] = f"{pooled}_unsorted"
    nodes.insert(index + 1, onnx.helper.make_node("Unique", [f"{pooled}_unsorted"], [pooled], "rows", axis=0))
    module = as_module(unknown)
    with pytest.raises(UnsupportedModelError, match="Unique 'rows'"):
        module(X)
    with torch.no_grad():
        module(X)


def test_second_derivatives_are_refused(module):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((module(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives: the ONNX graph has first ones only"):
        gradient.sum().backward()


def test_missing_pytorch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import onnxqat.torch"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "MissingExtraError: PyTorch is not installed; run `pip install 'onnxqat[torch]'`" in run.stderr


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BOOL", "INT64"])
def test_memory_is_used_again_once_no_tensor_reads_it(dtype):
    memory = Memory()
    kind = onnx_ir.DataType[dtype]
    first, second = (as_tensor(memory.take([4, 3], kind)) for _ in range(2))
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2
    row = first[1]
    del first
    assert as_tensor(memory.take([4, 3], kind)).data_ptr() not in places  # a row of the first is still read
    del row, second
    assert {as_tensor(memory.take([4, 3], kind)).data_ptr()} < places
    assert as_tensor(memory.take([4, 0], kind)).shape == (4, 0)


def test_graph_that_is_kept_while_others_run_gives_its_own_gradients(qdq):
    module = as_module(qdq, threads=2)
    functional.cross_entropy(module(X), LABEL).backward()
    expected = gradients(module)
    kept = functional.cross_entropy(module(X), LABEL)
    for _ in range(3):
        functional.cross_entropy(module(-X), LABEL).backward()
    module.zero_grad()
    kept.backward()
    assert all(np.array_equal(found, expected[name]) for name, found in gradients(module).items())
