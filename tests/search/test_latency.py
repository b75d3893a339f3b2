"""Layers that stay in float because they are faster so, by clocks that are made up: what real ones say differs each time."""

import itertools
import json
import random as numbers
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat import Config, InputError, Select
from onnxqat.graph.qdq import quantizers
from onnxqat.pipeline import summary
from onnxqat.search.latency.choice import settled
from onnxqat.search.latency.timing import Trials
from onnxqat.verification.host import Host
from onnxqat.verification.report import Latency, Size
from tests.classifier import write
from tests.models import model, random

NET = """(float[N,8] x) => (float[N,3] y) {
  a = Gemm(x, w) r = Relu(a) c = Gemm(r, v) s = Relu(c) d = Gemm(s, u) t = Relu(d) y = Gemm(t, z)
}"""
WEIGHTS = {"w": random(8, 6), "v": random(6, 10), "u": random(10, 4), "z": random(4, 3)}
DATA = [{"x": random(16, 8)}]


@pytest.fixture(scope="module")
def network():
    proto = model(NET, **WEIGHTS)
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return proto


@pytest.fixture
def clock(monkeypatch):
    """Lets a layer take the time given for its integer form, 1 for its float form, and 0.1 for each quantizer of data."""

    def made(**integer):
        def time(host, names, inputs, seconds):
            assert set(inputs) == {"x"}
            return {name: np.full(5, taken(onnx.load(host.folder / f"{name}.onnx"))) for name in names}

        def taken(proto):
            found = quantizers(ir.from_proto(proto))
            layers = {use.node.name for q in found if q.is_weight for use in q.output.uses()}
            total = sum(not q.is_weight for q in found) * 0.1
            gemms = [node.name for node in proto.graph.node if node.op_type == "Gemm"]
            return total + sum(integer.get(name.removeprefix("node_"), 0.5) if name in layers else 1 for name in gemms)

        monkeypatch.setattr(Host, "time", time)

    return made


def in_float(deployed):
    weights = {q.source.name for q in quantizers(ir.from_proto(deployed)) if q.is_weight}
    return {name for name in WEIGHTS if not any(name in str(weight) for weight in weights)}


def test_layers_that_integers_make_slower_stay_in_float_and_the_settings_say_so(network, clock, tmp_path):
    clock(c=3.0)
    found = onnxqat.faster(network, DATA)
    assert (found.floats, found.layers) == (("node_c",), 4)
    assert found.ratio < found.before
    assert found.config == Config(ignore=[Select(name="node_c")])
    (tmp_path / "c.json").write_text(found.config.model_dump_json(exclude_defaults=True))
    assert Config.from_json(tmp_path / "c.json") == found.config
    assert in_float(onnxqat.fold(onnxqat.insert(network, DATA, found.config))) == {"v"}


def test_a_choice_that_is_slower_as_a_whole_is_dropped(network, clock, monkeypatch):
    clock(c=3.0)
    monkeypatch.setattr(Trials, "over_float", lambda trials, floats: 0.6 if floats else 0.5)
    found = onnxqat.faster(network, DATA)
    assert (found.floats, found.ratio, found.config) == ((), 0.5, Config())


def test_settings_are_those_given_where_all_layers_gain(network, clock):
    clock()
    config = Config(weight_bits=4)
    found = onnxqat.faster(network, DATA, config)
    assert (found.floats, found.config) == ((), config)


def test_model_that_gains_nowhere_is_refused(network, clock):
    clock(a=2, c=2, d=2, y=2)
    with pytest.raises(InputError, match=r"no layer is faster in integers in onnxruntime .*; deploy the float model"):
        onnxqat.faster(network, DATA)


def test_target_whose_integers_are_simulated_is_refused(network):
    with pytest.raises(InputError, match="target 'tensorrt': its integers are only simulated here"):
        onnxqat.faster(network, DATA, Config(target="tensorrt"))


@pytest.mark.parametrize("seed", range(20))
def test_choice_is_no_slower_than_all_in_integers_or_all_in_float_or_all_but_one_stretch(seed):
    chance, names = numbers.Random(seed), "abcdefghi"
    integer = {name: chance.choice([0.5, 0.9, 1.5]) for name in names}

    def time(floats):
        borders = sum((one in floats) != (other in floats) for one, other in itertools.pairwise(names))
        return sum(1 if name in floats else integer[name] for name in names) + 0.3 * borders

    found = time(settled(names, lambda one, other: time(one) / time(other)))
    halves = [names[start:stop] for start, stop in ((0, 0), (0, 9), (0, 4), (4, 9))]
    assert found <= min(time(frozenset(half)) for half in halves) / 0.99


def test_command_writes_the_choice_as_a_configuration_that_makes_the_same_model(tmp_path, call, clock):
    clock(a=0.1)
    folder = write(tmp_path)
    arguments = (folder / "float.onnx", "--calibration", folder / "data.npz")
    chosen = ("--for", "latency", "--write-config", folder / "c.json", "-o", folder / "a.onnx")
    status, said, _ = call("insert", *arguments, *chosen)
    assert status == 0
    assert "of 2 layers stay in float" in said
    json.loads((folder / "c.json").read_text())
    assert call("insert", *arguments, "--config", folder / "c.json", "-o", folder / "b.onnx")[0] == 0
    assert onnx.load(folder / "a.onnx") == onnx.load(folder / "b.onnx")


def test_processes_are_not_to_choose_each_for_itself(tmp_path, call, monkeypatch):
    folder = write(tmp_path)
    monkeypatch.setattr("onnxqat.cli.asked.launched", lambda: True)
    arguments = ("--calibration", folder / "data.npz", "--for", "latency", "-o", folder / "a.onnx")
    status, _, errors = call("insert", folder / "float.onnx", *arguments)
    assert status == 2
    assert "one process chooses; run onnxqat insert with it and --write-config FILE" in errors


@pytest.mark.parametrize(
    ("ratio", "most", "said"),
    [
        (1.31, None, "takes 1.31 of float's time here; --for latency"),
        (1.01, None, None),
        (0.804, 0.8, "takes 0.804 of float's time here, more than the 0.8 asked for"),
        (0.79, 0.8, None),
    ],
)
def test_summary_of_a_run_says_where_the_deployed_model_is_slower_than_float_or_than_was_asked_for(ratio, most, said):
    times = Latency(deployed=10 * ratio, float_model=10.0, ratio=ratio, rounds=5, batch=1, threads=1)
    report = SimpleNamespace(
        metric="accuracy", trained=0.9, deployed=0.9, size=Size(1, 4), latency=times, integer_count=lambda: (1, 1)
    )
    caption = summary(
        SimpleNamespace(report=report, judged_on="test data", float_score=0.9, inserted_score=0.9, was_trained=True),
        most,
    ).caption
    assert caption is None if said is None else said in caption


def test_budget_of_latency_leaves_the_noisiest_layers_in_float_as_far_as_time_allows(network, clock):
    clock()  # integers take 0.625 of float's time, and each layer in float 0.1 more
    noisy = onnxqat.mixed_precision(network, DATA, latency=0.75)
    assert (noisy.latency, len(noisy.config.ignore)) == (pytest.approx(0.725), 1)
    assert list(noisy.widths.values()).count(32) == 1
    quiet = onnxqat.mixed_precision(network, DATA, latency=0.86)
    assert len(quiet.config.ignore) == 2
    assert quiet.loss < noisy.loss
    made = quantizers(ir.from_proto(onnxqat.insert(network, DATA, noisy.config)))
    assert {q.source.name for q in made if q.is_weight} == {name for name, bits in noisy.widths.items() if bits == 8}


def test_budget_of_latency_that_cannot_be_reached_names_the_nearest(network, clock):
    clock(c=3.0)
    with pytest.raises(
        InputError, match=r"budget: latency=0.5 cannot be reached in .* machine; the nearest is latency=0.72"
    ):
        onnxqat.mixed_precision(network, DATA, latency=0.5)
    with pytest.raises(InputError, match=r"latency is 1\.0, a share of the float model's time; it must be below 1"):
        onnxqat.mixed_precision(network, DATA, latency=1.0)
