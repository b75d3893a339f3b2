"""The verify stage as a user calls it, on the committed classifier and on what another quantizer wrote."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from onnxqat.verification.run import evaluate, verify
from tests.classifier import LABELS, NET, ROWS, WEIGHTS
from tests.models import model, quantized_by_onnxruntime

MODEL = str(Path(__file__).parents[2] / "models" / "resnet20.onnx")


@pytest.fixture(scope="module")
def batches():
    """640 test images."""
    return [batch for batch, _ in zip(fashion_mnist.test(), range(10), strict=False)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Q/DQ and deployed model, as files."""
    folder = tmp_path_factory.mktemp("models")
    trained = insert(MODEL, fashion_mnist.calibration(), Config())
    onnx.save(trained, folder / "trained.onnx")
    onnx.save(fold(trained), folder / "deployed.onnx")
    return folder / "trained.onnx", folder / "deployed.onnx"


def test_a_deployed_model_of_one_sample_is_scored_on_batches_of_any_size():
    data = [{"x": ROWS, "label": LABELS}]
    scores = []
    for fixed in ({}, {"N": 1}):
        deployed = fold(insert(model(NET, **WEIGHTS), data, Config(fixed_inputs=fixed)))
        scores.append(evaluate(deployed, data))
    assert scores[0] == scores[1]


def unlabelled(batch):
    return {name: array for name, array in batch.items() if name != "label"}


def text_of(report):
    console = Console(file=StringIO(), width=160)
    console.print(report)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("runtime", "elsewhere", "version"),
    [("ort", False, "onnxruntime 1.19.2"), ("ort", True, "onnxruntime 1."), ("openvino", False, "OpenVINO 20")],
    ids=["1.19.2", "stock", "OpenVINO"],
)
def test_report_of_a_deployed_classifier(pair, batches, request, runtime, elsewhere, version):
    interpreter = request.getfixturevalue("stock_python") if elsewhere else None
    report = verify(*pair, batches, runtime=runtime, interpreter=interpreter)
    assert report.runtime.startswith(version)
    assert report.samples == 640
    assert min(report.trained, report.deployed) > 0.9
    assert report.agreement >= 0.99
    assert report.integer_count() == (22, 22)
    assert not report.not_integer
    assert [o.output for o in report.outputs] == ["output"]
    assert report.worst.step_from == "range"
    assert report.size.deployed == pair[1].stat().st_size
    assert report.size.ratio < 0.4
    assert report.latency.batch == 64
    assert report.latency.threads == 2
    assert min(report.latency.deployed, report.latency.float_model, report.latency.ratio) > 0
    assert report.latency.rounds >= 5


@pytest.fixture(scope="module")
def report(pair, batches):
    return verify(*pair, batches[:2])


def test_report_as_json_holds_every_figure(report):
    found = json.loads(report.to_json())
    assert found == json.loads(json.dumps(report.to_dict()))
    assert found["weighted_nodes"] == {"integer": 22, "total": 22}
    assert found["size"]["ratio"] == report.size.ratio
    assert found["outputs"][0]["steps"] == report.worst.steps
    assert {k["kernel"] for k in found["kernels"] if k["op_type"] == "Conv"} == {"QLinearConv"}


def test_report_as_text_names_figures_and_kernels(report):
    text = text_of(report)
    assert "onnxruntime 1.19.2, 128 samples" in text
    assert "accuracy" in text
    assert "22 of 22" in text
    assert "QLinearAdd" in text


def test_text_gives_the_reason_of_each_float_node(network, batches):
    model = network("[t] h = Tanh(xd) [conv] y = Conv(h, w1d)")
    data = [{"x": np.ones((1, 2, 4, 4), np.float32)}]
    text = text_of(verify(model, model, data))
    assert "float: Conv 'conv': input 'h' comes from Tanh 't' without a DequantizeLinear" in text
    assert "float: Tanh 't': ONNX Runtime has no integer kernel for Tanh" in text


def test_text_says_where_a_large_difference_arises(network):
    body = "[conv] c = Conv(xd, w1d, b1d) cq = QuantizeLinear(c, s, z) y = DequantizeLinear(cq, s, z)"
    data = [{"x": np.random.default_rng(0).normal(size=(4, 2, 4, 4)).astype(np.float32)}]
    report = verify(network(body), network(body.replace("w1d", "w2d")), data)
    assert report.worst.steps > 2
    assert "Where it arises: 'y', computed by Conv 'conv', is the first of 2 quantized values" in text_of(report)


def test_without_labels_there_is_no_metric_but_agreement(pair, batches):
    report = verify(*pair, [unlabelled(batches[0])])
    assert (report.trained, report.deployed) == (None, None)
    assert report.agreement is not None


def test_size_is_compared_with_the_float_model_that_is_given(pair, batches):
    report = verify(*pair, batches[:1], float_model=MODEL)
    assert report.size.float_model == Path(MODEL).stat().st_size


def test_models_in_memory_have_the_size_of_their_files(pair, batches, report):
    in_memory = verify(*map(onnx.load, pair), batches[:1])
    # files are written again for the runtime: the same content, with a few bytes of the writer's own
    assert in_memory.size.deployed == pytest.approx(report.size.deployed, rel=0.001)
    assert in_memory.size.float_model == report.size.float_model


def test_models_that_another_quantizer_wrote_can_be_verified(batches, tmp_path):
    foreign = quantized_by_onnxruntime(onnx.load(MODEL), tmp_path, map(unlabelled, batches[:2]), per_channel=True)
    report = verify(foreign, foreign, batches[:2])
    assert report.integer_count() == (22, 22)
    assert report.agreement > 0.97


def test_evaluate_gives_the_metric_of_any_model(batches):
    import onnxruntime as ort

    session = ort.InferenceSession(MODEL)
    name = session.get_inputs()[0].name
    hits = [session.run(None, {name: b[name]})[0].argmax(1) == b["label"] for b in batches[:2]]
    assert evaluate(MODEL, batches[:2]) == pytest.approx(np.mean(hits))


def test_evaluate_top5_is_at_least_accuracy(batches):
    assert evaluate(MODEL, batches[:2], metric="top5") >= evaluate(MODEL, batches[:2])


def test_evaluate_takes_a_users_metric(batches):
    def confident(output, label):
        return output.max(axis=1) > -np.inf

    assert evaluate(MODEL, batches[:1], metric=confident) == 1


def test_evaluate_without_labels_is_refused(batches):
    with pytest.raises(InputError, match="lacks 'label'"):
        evaluate(MODEL, [unlabelled(batches[0])])


def test_labels_out_of_range_are_refused(batches):
    wrong = {**batches[0], "label": batches[0]["label"] + 10}
    with pytest.raises(InputError, match="the model has 10 classes, 0 to 9"):
        evaluate(MODEL, [wrong])
