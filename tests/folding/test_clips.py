"""Clips between two layers: one quantizer, behind the Clip, and what ships is what was trained."""

import numpy as np
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of
from tests import stock
from tests.insertion.cases import image
from tests.models import FLOAT_KERNELS, array, batches, chain, float_kernels, operators, outputs, random

CLIPS = {
    "hardtanh": "k = Clip(a, minus_one, one)",
    "hardtanh by Min and Max": "m = Min(a, one) k = Max(m, minus_one)",
    "only a maximum": "k = Clip(a, , half)",
    "Min": "k = Min(a, half)",
    "only a minimum": "k = Clip(a, minus_half)",
    "Max": "k = Max(minus_half, a)",
    "above zero": "k = Clip(a, half, one)",
    "below zero": "k = Clip(a, minus_one, minus_half)",
    "uneven": "k = Clip(a, minus_half, one)",
    "behind a sum": "s = Add(a, a) k = Clip(s, minus_one, one)",
}
LIMITS = {"minus_one": -1, "one": 1, "half": 0.5, "minus_half": -0.5}


def clipped(name: str):
    nodes = CLIPS[name]
    used = {n: np.float32(v) for n, v in LIMITS.items() if f" {n})" in nodes or f"({n}," in nodes or f" {n}," in nodes}
    return image(
        f"a = Conv<pads=[1,1,1,1]>(x, w, b) {nodes} y = Conv(k, v, d)", w=random(4, 4, 3, 3, scale=1.0), **used
    )


@pytest.mark.parametrize("name", CLIPS)
def test_the_one_quantizer_of_a_clip_stands_behind_it(name):
    quantized = insert(clipped(name), batches(clipped(name)))
    assert "Conv Clip Q DQ Conv" in " ".join(chain(quantized)) or name == "behind a sum"
    assert set(operators(quantized)) & {"Min", "Max"} == set()
    source = next(q.source for q in qdq.quantizers(io.load(quantized)) if q.source.name == "k")
    assert source.producer().op_type == "Clip"


@stock.needs_stock
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_carried_out_on_codes_and_the_layers_around_it_on_integers(name, bits):
    proto = clipped(name)
    data = batches(proto, 2)
    config = Config(activation_bits=bits, first_last_bits=None)
    trainer = Trainer(insert(proto, data, config), "distill", teacher=proto)
    for batch in data:
        trainer.step(batch)
    deployed = fold(trainer.model())
    assert float_kernels(deployed) == set()
    (found,), kernels = stock.run(deployed, data[0])
    assert not set(kernels) & FLOAT_KERNELS
    step = float(array(deployed, "y_scale"))
    apart = np.abs(found - outputs(trainer.model(), data[0])[0]) / step
    assert apart.max() < 1.5
    assert (apart > 0.5).mean() < 0.02


@pytest.fixture(scope="module")
def openvino():
    pytest.importorskip("openvino")
    with opened("openvino") as runtime:
        yield runtime


@pytest.mark.parametrize("name", CLIPS)
def test_layers_around_a_clip_run_on_integers_in_openvino(name, openvino):
    proto = clipped(name)
    deployed = fold(insert(proto, batches(proto), Config(target="openvino")))
    kinds = {kernel.kind for kernel in kernels_of(openvino, io.load(deployed)) if kernel.op_type == "Conv"}
    assert kinds == {"integer"}


@stock.needs_stock
@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, low, high)"])
def test_activation_between_two_pairs_stays_so_that_they_do_not_become_one(activation):
    limits = {"low": np.float32(-0.5), "high": np.float32(0.4)} if "low" in activation else {}
    proto = image(
        f"a = Conv<pads=[1,1,1,1]>(x, w, b) [kept] k = {activation} y = Conv(k, v, d)",
        w=random(4, 4, 3, 3, scale=3.0),
        **limits,
    )
    data = batches(proto)
    quantized = insert(proto, data, Config(ignore=[{"name": "kept"}]))
    deployed = fold(quantized)
    (found,), _ = stock.run(deployed, data[0])
    step = float(array(deployed, "y_scale"))
    assert (np.abs(found - outputs(quantized, data[0])[0]) > 0.5 * step).mean() < 0.02
