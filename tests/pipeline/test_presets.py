import re

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.config import Config
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.graph.without import ADAPTED, RECONSTRUCTION
from onnxqat.pipeline.presets import PRESETS
from onnxqat.pipeline.request import configuration
from tests.models import model, random

NET = model(
    "(float[N,8] x) => (float[N,3] y) { a = MatMul(x, w)\n b = Relu(a)\n c = MatMul(b, u)\n d = Relu(c)\n y = MatMul(d, v) }",
    w=random(8, 8),
    u=random(8, 8, seed=1),
    v=random(8, 3),
)


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "a.npz", x=random(256, 8, scale=1.0), label=np.arange(256) % 3)
    onnx.save(NET, tmp_path / "m.onnx")
    return tmp_path


def test_preset_sets_widths_and_reconstruction_which_options_overrule(call, files):
    given = ("insert", files / "m.onnx", "--calibration", files / "a.npz", "--preset", "w4a4", "-o", files / "q.onnx")
    assert call(*given)[0] == 0
    made = io.load(files / "q.onnx")
    assert made.metadata_props[ADAPTED] == RECONSTRUCTION
    inner = {q.source.name: q.bits for q in quantizers(made)}
    assert (inner["u"], inner["b"]) == (4, 4)
    assert call(*given, "--activation-bits", 6, "--no-reconstruct")[0] == 0
    made = io.load(files / "q.onnx")
    assert made.metadata_props.get(ADAPTED) != RECONSTRUCTION
    inner = {q.source.name: q.bits for q in quantizers(made)}
    assert (inner["u"], inner["b"]) == (4, 6)


def test_file_overrules_a_preset_and_options_overrule_both(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"activation_bits": 6}')
    made = configuration(path, None, preset="w2a2", weight_bits=3)
    assert (made.weight_bits, made.activation_bits) == (3, 6)
    assert configuration(None, None, preset="int8") == Config()


def test_preset_sets_rate_and_epochs_of_a_run(call, files):
    given = ("run", files / "m.onnx", "--data", files / "a.npz", "--preset", "w4a8", "--no-reconstruct")
    outputs = ("-o", files / "o.onnx", "--log-file", files / "log.jsonl")
    assert call(*given, *outputs)[0] == 0
    log = (files / "log.jsonl").read_text()
    assert max(float(rate) for rate in re.findall(r'"lr": ([\d.e-]+)', log)) <= 1e-4
    assert log.count('"epoch"') == 3


def test_mixed_preset_leaves_in_float_what_half_of_the_allowed_drop_needs(call, files):
    given = ("insert", files / "m.onnx", "--calibration", files / "a.npz", "--preset", "int8-mixed")
    status, said, _ = call(*given, "--write-config", files / "c.json", "-o", files / "q.onnx")
    assert (status, "mixed precision: " in said) == (0, True)
    made = onnx.load(files / "q.onnx")
    assert onnxqat.verify(made, onnxqat.fold(made), files / "a.npz", float_model=NET).verdict.drop <= 0.5


def test_presets_are_shown_with_where_they_were_found(call):
    status, said, _ = call("presets")
    assert status == 0
    for name, preset in PRESETS.items():
        assert name in said
        assert preset.found[:30] in said


def test_preset_that_is_not_known_is_refused(call, files):
    given = ("insert", files / "m.onnx", "--calibration", files / "a.npz", "-o", files / "q.onnx")
    status, _, said = call(*given, "--preset", "w9")
    assert (status, "preset 'w9': is not known; use int8, int8-mixed, w4a8, w4a4, w2a2" in said) == (2, True)
