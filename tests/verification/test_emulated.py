"""Layers in plain operators, against the rule in NumPy and against the kernels of this machine, whichever kind it is."""

import sys

import numpy as np
import pytest

from onnxqat.graph import io
from onnxqat.graph.pairs import paired_layers
from onnxqat.verification import two_taps
from onnxqat.verification.emulated import emulated
from onnxqat.verification.host import opened
from onnxqat.verification.other_processor import saturates_here
from tests import stock
from tests.stock import needs_stock
from tests.verification.saturating import LAYERS, expected, openvino_pairing


@pytest.fixture(scope="module")
def default_ort():
    with opened("ort") as host:
        yield host


def layer_number(deployed):
    (layer,) = paired_layers(deployed)
    return list(deployed.graph).index(layer.node)


def emulation(host, proto, inputs, *, saturating):
    """Outputs of the model whose one layer is written out, and the layer's statistics."""
    deployed = io.load(proto)
    found = emulated(deployed, [layer_number(deployed)], host.runtime, saturating=saturating)
    host.load("other", found.model, simulate=host.runtime == "openvino")
    outputs = host.run("other", inputs)
    return outputs["y"], outputs[found.statistics[0]]


def as_codes(layer, output):
    return np.rint(output / layer.weights["sy"]) + 128 if layer.writes else output


def assert_same(layer, output, codes, *, float_error=0.0):
    found = as_codes(layer, output)
    if layer.writes:
        assert np.array_equal(found, codes)
    else:
        assert np.abs(found - codes).max() <= float_error * np.abs(codes).max()


@pytest.mark.parametrize("name", LAYERS)
def test_codes_are_those_of_the_rule_for_onnxruntime(default_ort, name):
    layer = LAYERS[name]
    exact, lossy = expected(layer, None), expected(layer, "taps")
    output, (changed, count, largest) = emulation(default_ort, layer.model(), layer.inputs(), saturating=True)
    assert_same(layer, output, lossy)
    assert count == lossy.size
    assert changed == np.count_nonzero(exact != lossy) > 0
    if layer.writes:
        assert largest == np.abs(exact - lossy).max()


@pytest.mark.parametrize("name", ["2-D", "groups", "gemm", "matmul, float"])
def test_pairs_of_a_few_channels_at_once_give_the_same_codes(default_ort, name, monkeypatch):
    layer = LAYERS[name]
    whole, statistics = emulation(default_ort, layer.model(), layer.inputs(), saturating=True)
    monkeypatch.setattr(two_taps, "PAIRS_AT_ONCE", 3)
    parts, same_statistics = emulation(default_ort, layer.model(), layer.inputs(), saturating=True)
    assert np.array_equal(whole, parts)
    assert np.array_equal(statistics, same_statistics)


@pytest.mark.parametrize("name", LAYERS)
def test_codes_are_those_of_the_rule_for_openvino(openvino, name):
    layer = LAYERS[name]
    output, (changed, count, _) = emulation(openvino, layer.model(), layer.inputs(), saturating=True)
    # OpenVINO multiplies by its scales in another order
    assert_same(layer, output, expected(layer, openvino_pairing(layer)), float_error=1e-6)
    assert 0 < changed <= count


@pytest.mark.parametrize("name", LAYERS)
def test_codes_are_those_of_onnxruntimes_kernels_on_this_machine(ort, name):
    layer = LAYERS[name]
    ort.load("deployed", io.load(layer.model()))
    real = ort.run("deployed", layer.inputs())["y"]
    output, _ = emulation(ort, layer.model(), layer.inputs(), saturating=saturates_here(ort))
    assert np.array_equal(output, real)


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI"])
def test_codes_are_those_of_openvinos_kernels_for_either_kind_of_processor(isa, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    with opened("openvino", sys.executable) as host:
        saturating = saturates_here(host)
        assert saturating or isa != "AVX2"
        # several matrices it multiplies in float
        for layer in (layer for name, layer in LAYERS.items() if name != "matrices"):
            host.load("deployed", io.load(layer.model()))
            real = host.run("deployed", layer.inputs())["y"]
            output, _ = emulation(host, layer.model(), layer.inputs(), saturating=saturating)
            assert_same(layer, output, as_codes(layer, real), float_error=1e-6)


@needs_stock
@pytest.mark.parametrize("name", ["2-D", "odd channels, uneven pads", "gemm", "matmul"])
def test_kernels_that_a_session_option_asks_for_are_exact_on_every_processor(name):
    layer = LAYERS[name]
    (output,), _ = stock.run(layer.model(), layer.inputs(), precise=True)
    assert_same(layer, output, expected(layer, None))
