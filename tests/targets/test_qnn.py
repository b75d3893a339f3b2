"""The table of `qnn` against the NPU's emulator: operators between convolutions, and whole networks. Skips without its wheel."""

import numpy as np
import onnx
import pytest

import onnxqat
from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.targets.qnn import TARGET as QNN
from onnxqat.verification import fusion, fusion_qnn
from onnxqat.verification.context import compiled
from onnxqat.verification.host import opened
from tests.models import batches
from tests.targets.test_targets import OPERATORS, sandwich
from tests.verification.conftest import qnn_python  # noqa: F401  (a fixture)
from tools.networks import bert, unet

NAMED = QNN.operators.kernels | QNN.operators.moves | QNN.operators.absorbs


@pytest.fixture(scope="module")
def host(qnn_python):  # noqa: F811
    with opened("qnn", qnn_python) as host:
        yield host


@pytest.mark.parametrize("operator", sorted(NAMED & OPERATORS.keys()))
def test_operator_runs_on_integers_and_leaves_the_layers_around_it_so(operator, host, monkeypatch):
    monkeypatch.setattr(fusion, "NOT_REPORTED", frozenset({"QuantizeLinear", "DequantizeLinear", "Identity"}))
    proto = sandwich(OPERATORS[operator])
    deployed = io.load(fold(insert(proto, batches(proto, 1), Config(target="qnn"))))
    answer = host.executed(fusion.marked(deployed))
    assert {kernel.kind for kernel in fusion_qnn.report(deployed, answer)} <= {"integer", "absorbed"}
    placed = fusion_qnn.placed(deployed, answer)
    assert (placed.whole, placed.partitions, placed.on_cpu) == (True, 1, ())


#: Operators that have been wrong on some grids, or along some axes.
DELICATE = ["HardSigmoid", "LayerNormalization", "MatMul", "PRelu", "Sigmoid", "Softmax", "Softplus", "Tanh", "CumSum"]


@pytest.mark.parametrize(("operator", "bits"), [*((one, 16) for one in DELICATE), ("CumSum", 8)])
def test_operator_gives_the_answers_of_the_simulation(operator, bits, host):
    """Within two steps of 8 bits, which operators that have only these may be off."""
    proto = sandwich(OPERATORS[operator])
    batch = batches(proto, 1)[0]
    qdq = insert(proto, [batch], Config(target="qnn", activation_bits=bits))
    host.load("trained", io.load(qdq), simulate=True)
    host.load("deployed", io.load(fold(qdq)))
    expected, found = (next(iter(host.run(name, batch).values())) for name in ("trained", "deployed"))
    assert np.abs(found - expected).max() < 2.5 * np.ptp(expected) / 255


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_operator_runs_in_float_on_the_npu_too(operator, host):
    proto = sandwich(OPERATORS[operator])
    deployed = io.load(fold(insert(proto, batches(proto, 1), Config(target="qnn"))))
    answer = host.executed(fusion.marked(deployed))
    kinds = {kernel.op_type: kernel.kind for kernel in fusion_qnn.report(deployed, answer)}
    assert (kinds[operator], kinds["Conv"]) == ("float", "integer")
    assert fusion_qnn.placed(deployed, answer).whole


def of_fashion(name: str, suffix: str = "") -> tuple[onnx.ModelProto, list, list, str]:
    file = fashion_mnist.SLICE.with_name(f"{name}.onnx")
    images = {key: array[:8] for key, array in next(iter(getattr(fashion_mnist, f"test{suffix}")())).items()}
    return onnx.load(file), list(getattr(fashion_mnist, f"calibration{suffix}")())[:1], [images], "batch"


def of_noise(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list, list, str]:
    return proto, batches(proto, 1, rows=16), batches(proto, 1, rows=4), "N"


NETWORKS = {
    "resnet20": lambda: of_fashion("resnet20"),
    "separable": lambda: of_fashion("separable", "_nhwc"),
    "bert": lambda: of_noise(bert(width=32, heads=2, layers=1, length=8)),
    "unet": lambda: of_noise(unet(width=4, depth=2, size=16)),
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in NETWORKS), ("bert", {"activation_bits": 16}), ("bert", {"sixteen": "auto"})],
)
def test_network_runs_whole_on_integers_of_the_npu(name, settings, qnn_python):  # noqa: F811
    float_model, calibration, data, size = NETWORKS[name]()
    qdq = insert(float_model, calibration, Config(target="qnn", fixed_inputs={size: 1}, **settings))
    report = onnxqat.verify(qdq, fold(qdq), data, interpreter=qnn_python)
    assert report.placed is not None
    assert (report.placed.whole, report.placed.partitions, report.placed.on_cpu) == (True, 1, ())
    assert not report.not_integer
    (output,) = report.outputs
    assert output.largest < 0.25 * (output.step * (255 if not settings else 65535))
    if name in ("resnet20", "separable"):
        assert report.agreement == 1.0


def test_node_that_the_npu_does_not_have_is_named_with_its_place(qnn_python):  # noqa: F811
    proto = sandwich(OPERATORS["Softsign"])
    qdq = insert(proto, batches(proto, 1), Config(target="qnn"))
    report = onnxqat.verify(qdq, fold(qdq), batches(proto, 1), interpreter=qnn_python)
    assert not report.placed.whole
    assert report.placed.on_cpu == ("Softsign",)
    assert "2 partitions, 1 nodes on the CPU: 'Softsign'" in report.placed.sentence
    assert np.isfinite(report.outputs[0].largest)


def test_compiled_context_gives_the_same_answers(host, qnn_python, tmp_path):  # noqa: F811
    proto = sandwich(OPERATORS["Add"])
    deployed, batch = fold(insert(proto, batches(proto, 1), Config(target="qnn"))), batches(proto, 1)[0]
    onnx.save(compiled(deployed, "60/75", qnn_python), tmp_path / "context.onnx")
    host.load("deployed", io.load(deployed))
    request = {"name": "compiled", "path": str(tmp_path / "context.onnx"), "threads": 1, "simulate": False}
    host.calls("load", request)
    np.testing.assert_array_equal(host.run("compiled", batch)["y"], host.run("deployed", batch)["y"])


def test_device_that_is_no_pair_of_numbers_is_refused():
    with pytest.raises(InputError, match="device 'phone': is not SOC/ARCH"):
        compiled(sandwich(OPERATORS["Add"]), "phone")
