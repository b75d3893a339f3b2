"""Transforms of the input that are written as layers stay in float; what quantization loses is measured."""

import logging

import numpy as np
import onnx
import pytest

from onnxqat.checking import check
from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.insertion import insert
from onnxqat.insertion.match import find_groups
from onnxqat.insertion.preparation import prepare
from onnxqat.targets import TARGETS
from tests.models import batches, decibels, model, outputs, random

SIZE, HOP, BINS = 64, 16, 33
TIMES = np.arange(SIZE) * 2 * np.pi / SIZE
WINDOW = np.hanning(SIZE)
WAVES = np.stack([WINDOW * wave(TIMES * k) for wave in (np.cos, np.sin) for k in range(BINS)]).astype(np.float32)
MEL = np.maximum(0, 1 - np.abs(np.arange(BINS)[:, None] - 3 * np.arange(10)[None] - 2) / 3).astype(np.float32)

#: Targets that look at layers alone, whatever their size.
OF_LAYERS = ("ort-cpu", "openvino", "webgpu")
STFT = "s = Conv<strides=[16]>(x, waves)"
HALVES = "re, im = Split<axis=1>(s, halves)"
#: From x [N, 1, 512] to p [N, bins, frames].
SPECTROGRAMS = {
    "squares by Mul": f"{STFT} {HALVES} r2 = Mul(re, re) i2 = Mul(im, im) e = Add(r2, i2) n = Add(e, eps) p = Log(n)",
    "squares by Pow": f"{STFT} {HALVES} r2 = Pow(re, two) i2 = Pow(im, two) e = Add(r2, i2) p = Sqrt(e)",
    "squares before the halves": f"{STFT} q = Mul(s, s) re, im = Split<axis=1>(q, halves) e = Add(re, im) p = Sqrt(e)",
    "magnitude": f"{STFT} t = Mul(s, two) a = Abs(t) p = Transpose<perm=[0,1,2]>(a)",
    "mel": f"""{STFT} {HALVES} r2 = Mul(re, re) i2 = Mul(im, im) e = Add(r2, i2) t = Transpose<perm=[0,2,1]>(e)
        m = MatMul(t, mel) c = Clip(m, eps) l = Log(c) p = Transpose<perm=[0,2,1]>(l)""",
}
LEARNED = {
    "first convolution": f"{STFT} p = Relu(s)",
    "rectified and rooted": f"{STFT} r = Relu(s) p = Sqrt(r)",
    "normalized": f"{STFT} m = ReduceMean<axes=[1]>(s) d = Sub(s, m) q = Pow(d, two) v = ReduceMean<axes=[1]>(q) "
    "e = Add(v, eps) z = Sqrt(e) p = Div(d, z)",
    "divided by its length": f"{STFT} n = ReduceL2<axes=[1]>(s) p = Div(s, n)",
    "gelu": f"{STFT} c3 = Pow(s, three) a = Add(s, c3) t = Tanh(a) p = Mul(s, t)",
    "also read as it is": f"{STFT} q = Mul(s, s) p = Concat<axis=1>(s, q)",
}


def spectral(nodes: str) -> onnx.ModelProto:
    constants = {
        "waves": WAVES[:, None], "halves": np.array([BINS, BINS]), "eps": np.float32(1e-6), "two": np.float32(2),
        "three": np.float32(3), "mel": MEL,
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if f" {name})" in nodes}
    channels = 10 if "mel" in nodes else 4 * BINS if "Concat" in nodes else 2 * BINS if "Split" not in nodes else BINS
    weights = {"u": random(8, channels, 3, scale=0.1), "b": random(8), "o": random(8, 4)}
    return model(
        f"""(float[N,1,512] x) => (float[N,4] y) {{ {nodes} h = Conv(p, u, b) k = Relu(h) g = GlobalAveragePool(k)
        f = Squeeze(g, last) y = MatMul(f, o) }}""",
        **weights,
        **used,
        last=np.array([2]),
    )  # fmt: skip


def reasons(quantized: onnx.ModelProto) -> dict[str, str]:
    return {n.op_type: p.value for n in quantized.graph.node for p in n.metadata_props if p.key == "onnxqat.float"}


@pytest.mark.parametrize("name", SPECTROGRAMS)
@pytest.mark.parametrize("kind", OF_LAYERS)
def test_spectrogram_stays_in_float_and_says_why(kind, name):
    proto = spectral(SPECTROGRAMS[name])
    data = batches(proto)
    quantized = insert(proto, data, Config(target=kind))
    assert decibels(outputs(proto, data[0])[0], outputs(quantized, data[0])[0]) > 20
    found = reasons(quantized)
    assert {node for node, reason in found.items() if "transform of the input" in reason} == (
        {"Conv", "MatMul"} if name == "mel" else {"Conv"}
    )


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_npu_computes_a_spectrogram_and_its_logarithm_in_float_up_to_the_next_layer(name):
    proto = spectral(SPECTROGRAMS[name])
    data = loud(proto)
    quantized = insert(proto, data, Config(target="qnn", fixed_inputs={"N": 4}))
    assert decibels(outputs(proto, data[0])[0], outputs(quantized, data[0])[0]) > 20
    assert {one.kind for one in check(fold(quantized))} == {"float"}
    assert "p" in {n.input[0] for n in quantized.graph.node if n.op_type in ("QuantizeLinear", "Transpose")}


def test_values_that_the_npu_cannot_hold_in_float_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        insert(proto := spectral(SPECTROGRAMS["mel"]), loud(proto), Config(target="qnn", fixed_inputs={"N": 4}))
    (record,) = caplog.records
    assert record.message.startswith(
        "6 values that stay in float reach beyond float16, in which they are computed, the"
    )
    assert record.message.endswith("scale what they compute from down")


@pytest.mark.parametrize("nodes", LEARNED.values(), ids=LEARNED)
def test_learned_layer_is_quantized(nodes):
    groups, skips = find_groups(prepare(spectral(nodes)), TARGETS["ort-cpu"], Config())
    assert len([group for group in groups if group.weight is not None]) == 3
    assert not [skip for skip in skips if "transform" in skip.reason]


QUANTIZED = Config(overrides=[{"type": "Conv", "weight_bits": 8}])


def test_transform_is_quantized_where_an_override_asks_for_it_and_what_is_lost_is_said(caplog):
    proto = spectral(SPECTROGRAMS["squares by Mul"])
    with caplog.at_level(logging.WARNING):
        quantized = insert(proto, loud(proto), QUANTIZED)
    assert "Conv" not in reasons(quantized)
    (record,) = caplog.records
    assert "quantized values keep less than 10 dB of their signal, the first 'p' of Log 'Log' (" in record.message
    assert record.message.endswith("leave the layers before it in float (ignore: 'Conv')")


def test_where_kernels_of_16_bits_are_the_remedy_for_what_is_lost_is_to_use_them(caplog):
    proto = spectral(SPECTROGRAMS["squares by Mul"])
    with caplog.at_level(logging.WARNING):
        insert(proto, loud(proto), QUANTIZED.model_copy(update={"target": "qnn", "fixed_inputs": {"N": 2}}))
    lost = [record.message for record in caplog.records if "of their signal" in record.message]
    assert "; use 16 bits (activation_bits: 16, or sixteen: auto" in lost[0]


def loud(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """A tone, beside which everything else is small."""
    tone = 100 * np.sin(np.arange(512) * 0.7)
    return [{"x": (batch["x"] * 1e-2 + tone).astype(np.float32)} for batch in batches(proto)]


@pytest.mark.parametrize("kind", OF_LAYERS)
def test_no_warning_is_given_where_little_is_lost(kind, caplog):
    proto = spectral(SPECTROGRAMS["squares by Mul"])
    with caplog.at_level(logging.WARNING):
        insert(proto, loud(proto), Config(target=kind))
    assert not caplog.records


def test_a_model_of_nothing_but_a_transform_is_quantized():
    proto = model(
        "(float[N,1,512] x) => (float[N,C,T] y) { s = Conv<strides=[16]>(x, w) y = Abs(s) }", w=WAVES[:, None]
    )
    assert "Conv" not in reasons(insert(proto, batches(proto)))
