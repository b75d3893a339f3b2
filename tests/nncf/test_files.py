"""Files of NNCF as people have them: keys of samples, bits by scope, accuracy-aware training, other algorithms beside."""

import json

import numpy as np
import pytest

from onnxqat import Config, InputError, Override
from onnxqat.config_parts import Tolerance
from onnxqat.nncf.unhonoured import IGNORED
from tests.nncf.test_nncf import changes, config, quantized


def test_key_of_nncf_without_counterpart_is_refused_with_the_way_to_do_it():
    with pytest.raises(InputError, match=r"compression_lr_multiplier: is not honoured; .*lower lr") as caught:
        config({"compression_lr_multiplier": 2.0})
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"compression\.compression_lr_multiplier: is not honoured; "):
        config(compression_lr_multiplier=2.0)


@pytest.mark.parametrize("key", IGNORED)
def test_key_that_is_no_matter_of_quantizers_is_warned_of_with_the_way_to_its_effect(key, caplog):
    within = key not in ("disable_shape_matching", "log_dir")
    config({} if within else {key: 1}, **({"params": {key: 1}} if within else {}))
    (message,) = caplog.messages
    assert message.startswith(f"NNCF configuration: keys that are not honoured: {key} ({IGNORED[key]}")


#: A file of a sample of NNCF's: what its script reads stands beside what NNCF reads.
OF_A_SAMPLE = {
    "model": "resnet18",
    "pretrained": True,
    "batch_size": 256,
    "epochs": 5,
    "optimizer": {"type": "Adam", "base_lr": 1e-5, "schedule_type": "multistep"},
    "input_info": {"sample_size": [1, 3, 8, 8]},
    "target_device": "NPU",
    "log_dir": "runs",
    "compression": {
        "algorithm": "quantization",
        "weights": {"bits": 4},
        "initializer": {"range": {"num_init_samples": 12}},
        "params": {"activations_quant_start_epoch": 2, "base_lr": 3e-4, "batch_multiplier": 2},
    },
}


def test_file_of_a_sample_loads_as_it_is_with_one_warning_for_each_kind_of_what_has_no_effect(caplog, tmp_path):
    path = tmp_path / "sample.json"
    path.write_text(json.dumps(OF_A_SAMPLE))
    read = Config.from_nncf(path)
    assert (read.target, read.weight_bits, read.activation_start_epoch) == ("openvino", 4, 2)
    foreign, unhonoured, device = caplog.messages
    where = f"{path}: NNCF configuration:"
    assert (
        foreign == f"{where} keys that are not NNCF's own are ignored: model, pretrained, batch_size, epochs, optimizer"
    )
    assert unhonoured.startswith(f"{where} keys that are not honoured: ")
    assert all(f"{name} (" in unhonoured for name in ("log_dir", "base_lr", "batch_multiplier"))
    assert device.startswith(f"{where} target_device: 'NPU' has no table of integer kernels here")


@pytest.mark.parametrize("device", ["GPU", "NPU", "VPU"])
def test_device_without_a_table_gets_that_of_openvino(device):
    assert changes({"target_device": device}) == {"overflow_fix": "disable"}


def test_ranges_without_samples_are_left_for_training_to_find(caplog):
    skipped = {
        "initializer": {"range": {"num_init_samples": 0}, "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    }
    found = quantized(**skipped)
    assert found["x"].scales == found["r"].scales == pytest.approx(1 / 127)
    assert found["w"].scales == pytest.approx(quantized()["w"].scales)  # a weight needs no samples
    assert any("calibration: skipped for 4 values" in message for message in caplog.messages)


def test_ranges_per_channel_without_samples_are_of_all_channels():
    found = quantized(initializer={"range": {"num_init_samples": 0}}, activations={"per_channel": True})
    assert found["x"].scales == pytest.approx(np.full(3, 1 / 127))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([[4, "Net/Conv2d[a]/conv2d_0|WEIGHT"]], Override(scope="Net/Conv2d[a]/conv2d_0", weight_bits=4)),
        ([[2, "Net/ReLU[a]/relu_0|OUTPUT"]], Override(scope="Net/ReLU[a]/relu_0|OUTPUT", activation_bits=2)),
        ([[6, "Net/Linear[a]/linear_0|INPUT0"]], Override(scope="Net/Linear[a]/linear_0", activation_bits=6)),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"type": "manual"}])
def test_bits_by_scope_become_overrides(kind, pairs, expected):
    precision = {**kind, "bitwidth_per_scope": pairs}
    assert changes(initializer={"precision": precision}) == {"overrides": (expected,)}


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ({"type": "hawq", "bits": [4, 8]}, "precision: type 'hawq' chooses bits by itself, as cannot be done here yet"),
        ({"type": "autoq", "iter_number": 300}, "precision: type 'autoq' chooses bits by itself"),
        ({"type": "manual"}, "precision.bitwidth_per_scope: Field required"),
        ({"bitwidth_per_scope": [[1, "a|WEIGHT"]]}, "bitwidth_per_scope.0.0: .*greater than or equal to 2 .is 1"),
        ({"bitwidth_per_scope": [[4, "a"]]}, "'a' names no quantizer; end it in .WEIGHT, .OUTPUT or .INPUT0"),
    ],
)
def test_precision_that_cannot_be_had_is_refused(precision, message):
    with pytest.raises(InputError, match=message):
        config(initializer={"precision": precision})


def test_accuracy_aware_training_becomes_a_tolerance():
    def tolerance(**params: float) -> Tolerance | None:
        training = {"mode": "early_exit", "params": {"maximal_total_epochs": 7, **params}}
        return config({"accuracy_aware_training": training}).tolerance

    assert tolerance(maximal_relative_accuracy_degradation=1.0) == Tolerance(relative=1.0, epochs=7)
    assert tolerance(maximal_absolute_accuracy_degradation=0.5) == Tolerance(absolute=0.5, epochs=7)


@pytest.mark.parametrize(
    ("tolerance", "bound"), [(Tolerance(relative=1.0), 0.9 * 0.99), (Tolerance(absolute=0.02), 0.88)]
)
def test_tolerance_gives_the_smallest_accuracy_that_is_good_enough(tolerance, bound):
    assert tolerance.bound(0.9) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"mode": "adaptive_compression_level", "params": {}}, "mode: is 'adaptive_compression_level', which looks for a rate"),
        ({"mode": "early_exit", "params": {}}, "params: give a relative or an absolute maximal accuracy degradation"),
        ({"mode": "early_exit", "params": {"patience": 3}}, "params.patience: no such key"),
    ],
)  # fmt: skip
def test_accuracy_aware_training_that_cannot_be_had_is_refused(training, message):
    with pytest.raises(InputError, match=f"accuracy_aware_training.*{message}"):
        config({"accuracy_aware_training": training})


@pytest.mark.parametrize(
    ("algorithm", "loss"),
    [
        (
            "filter_pruning",
            "no filter would be removed, so the model would stay as large and as slow as without pruning",
        ),
        ("magnitude_sparsity", "weights would stay as dense as they are"),
        ("rb_sparsity", "weights would stay as dense as they are"),
        ("const_sparsity", "training would fill the zeros among the weights"),
    ],
)
def test_other_algorithm_beside_quantization_is_refused_with_what_would_be_lost(algorithm, loss):
    root = {**OF_A_SAMPLE, "compression": [{"algorithm": algorithm}, {"algorithm": "quantization"}]}
    with pytest.raises(InputError, match=f"{algorithm!r} is not honoured, only 'quantization' is: {loss}.*; remove it"):
        Config.from_nncf(root)
