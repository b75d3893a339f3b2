"""Gradients of a Q/DQ model against torch's learnable fake-quantizers."""

import numpy as np
import onnx
import pytest
import torch

from onnxqat.config import Config
from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_those_of_torch(bits):
    # corrected, a value lies so near a tie that torch rounds it the other way than double precision does
    config = Config(weight_bits=bits, activation_bits=bits, output_correction="none")
    inserted = insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)], config=config)
    trainer = Trainer(inserted)
    quantized = trainer.model()  # with biases on their grid, which torch then need not know of
    batch = batches(1)[0]
    loss, gradients = trainer.gradients(batch)
    torch_loss, expected = torch_gradients(quantized, batch)
    assert loss == pytest.approx(torch_loss, rel=1e-4)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        # float32 convolutions of two libraries; a rounding that falls the other way moves a gradient by a share of a step
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max() + 1e-6)


IN_TORCH = {
    "Conv": lambda x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1),
    "Gemm": torch.nn.functional.linear,
    "Relu": torch.relu,
    "Add": torch.add,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Reshape": lambda x, shape: x.reshape([len(x), -1]),
}


def torch_gradients(proto, batch, inputs=()):
    """Runs the Q/DQ graph node by node in torch; gradients by all float initializers, and by the inputs named."""
    functional = torch.nn.functional
    values = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in proto.graph.initializer}
    leaves = {n: v.requires_grad_() for n, v in values.items() if v.dtype == torch.float32}
    values["x"] = torch.tensor(batch["x"], requires_grad="x" in inputs)
    leaves |= {name: values[name] for name in inputs}
    pending = {}
    for node in proto.graph.node:
        i = [values.get(name) for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "QuantizeLinear":
            pending[node.output[0]] = (i[0], i[1], i[2], attributes.get("axis", 1), torch.iinfo(i[2].dtype))
            continue
        if node.op_type == "Clip" and node.input[0] in pending:
            x, s, z, axis, _ = pending[node.input[0]]
            bounds = type("Bounds", (), {"min": int(i[1]), "max": int(i[2])})
            pending[node.output[0]] = (x, s, z, axis, bounds)
            continue
        if node.op_type == "DequantizeLinear":
            x, s, z, axis, bounds = pending[node.input[0]]
            zero = z.float().reshape(-1)
            if s.ndim == 0:
                y = torch._fake_quantize_learnable_per_tensor_affine(x, s.reshape(1), zero, bounds.min, bounds.max, 1.0)
            else:
                y = torch._fake_quantize_learnable_per_channel_affine(x, s, zero, axis, bounds.min, bounds.max, 1.0)
        else:
            y = IN_TORCH[node.op_type](*i)
        values[node.output[0]] = y
    loss = functional.cross_entropy(values[proto.graph.output[0].name], torch.tensor(batch["label"]))
    loss.backward()
    return loss.item(), {n: v.grad.numpy() for n, v in leaves.items() if v.grad is not None}
