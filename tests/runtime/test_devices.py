"""Devices: providers by name, and a device whose memory is not the arrays': the CPU in the clothes of another."""

from __future__ import annotations

import logging

import numpy as np
import onnxruntime as ort
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.runtime import devices
from onnxqat.runtime.devices import Device
from tests.models import model, random
from tests.runtime.test_engines import case

OTHER = "OtherExecutionProvider"


@pytest.fixture
def other(monkeypatch):
    """A provider with memory of its own, whose kernels are the CPU's."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [OTHER, "CPUExecutionProvider"])
    monkeypatch.setattr(Device, "providers", ["CPUExecutionProvider"])
    monkeypatch.setattr(Device, "check_started", lambda device, providers: None)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", ["convolutions", "LSTM"])
def test_a_device_with_memory_of_its_own_trains_as_the_cpu_does(name):
    qdq, batch = case(name)
    ours, expected = (
        onnxqat.Trainer(qdq, layout="plain", threads=1, provider=provider) for provider in ("other", "cpu")
    )
    for _ in range(3):  # what the optimizer changes reaches the device, and gradients come back
        assert ours.step(batch) == expected.step(batch)
    np.testing.assert_array_equal(ours.state.parameters, expected.state.parameters)
    assert ours.evaluate([batch]) == expected.evaluate([batch])


@pytest.mark.usefixtures("other")
def test_what_only_the_cpu_does_is_off_elsewhere_and_the_log_says_so(caplog):
    qdq, batch = case("convolutions")
    with caplog.at_level(logging.INFO, "onnxqat"):
        trainer = onnxqat.Trainer(qdq, provider="Other", threads=2)
    trainer.step(batch)
    assert trainer._steps.graph.block == 0
    assert list(trainer._steps.engine._training._lanes) == [1]
    assert "graphs run on other, convolutions in the plain layout and batches in one piece; optimizer" in caplog.text


@pytest.mark.usefixtures("other")
def test_scales_that_a_stage_does_not_use_have_gradient_0_on_a_device_too():
    body, weights = "(float[N,8] x) => (float[N,5] y) { y = MatMul (x, w) }", {"w": random(8, 5)}
    batch = {"x": random(4, 8), "label": np.arange(4)}
    config = onnxqat.Config(activation_start_epoch=1)
    trainer = onnxqat.Trainer(onnxqat.insert(model(body, **weights), [batch], config), provider="other")
    _, gradients = trainer.gradients(batch)
    assert [not gradient.any() for name, gradient in gradients.items() if name.startswith("x")] == [True]
    assert gradients["w"].any()


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_a_module_of_pytorch_runs_on_a_device(memory):
    torch = pytest.importorskip("torch")
    from onnxqat.torch import as_module

    qdq, batch = case("convolutions")
    found = []
    for provider in ("other", "cpu"):
        module = as_module(qdq, provider=provider, threads=1, layout="plain", memory=memory)
        x = torch.from_numpy(batch["x"]).requires_grad_()
        torch.nn.functional.cross_entropy(module(x), torch.from_numpy(batch["label"])).backward()
        found.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.usefixtures("other")
def test_a_device_beside_the_cpu_is_given_tensors_of_the_cpu_unless_pytorch_has_it_too():
    torch = pytest.importorskip("torch")
    from onnxqat.torch.graph import home

    assert home(Device("other")) == torch.device("cpu")
    assert home(Device("cuda", 1)) == torch.device("cuda:1" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_has_its_short_and_its_full_name_in_any_case(name):
    assert Device.named(name) == devices.CPU


def test_a_provider_that_is_not_installed_is_refused_with_what_is_there_and_the_remedy():
    with pytest.raises(
        InputError,
        match=r"provider 'CUDA': is not installed, onnxruntime \S+ lists .*cpu; use one of these, or install",
    ):
        onnxqat.Trainer(case("LSTM")[0], provider="CUDA")


@pytest.fixture
def listed(monkeypatch):
    """A build of ONNX Runtime that lists CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(("rank", "number"), [(None, 0), ("3", 3)], ids=["alone", "under torchrun"])
def test_each_process_takes_the_gpu_of_its_local_rank(rank, number, monkeypatch):
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    cuda = Device.named("cuda")
    assert cuda.memory == ("cuda", number)
    assert cuda.providers == [("CUDAExecutionProvider", {"device_id": str(number)}), "CPUExecutionProvider"]
    assert Device.named("cpu").providers == ["CPUExecutionProvider"]


@pytest.mark.usefixtures("listed")
def test_a_provider_that_does_not_start_is_refused_rather_than_left_out():
    with pytest.raises(
        InputError, match=r"provider 'cuda': onnxruntime .* lists it, but cannot start it; install driver"
    ):
        Device("cuda").check_started(["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "reason",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'c' Status Message: "
        "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t) "
        "Failed to allocate memory for requested buffer of size 1073741824",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "std::bad_alloc",
    ],
    ids=["arena", "CUDA", "processor"],
)
def test_too_little_memory_for_a_batch_is_one_line_with_advice(reason, monkeypatch):
    def full(*given):
        raise RuntimeError(reason)

    qdq, batch = case("LSTM")
    trainer = onnxqat.Trainer(qdq, threads=1)
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", full)
    with pytest.raises(
        InputError, match=r"batch: needs more memory than there is \(.+\); use a smaller --batch-size"
    ) as caught:
        trainer.step(batch)
    assert "\n" not in str(caught.value)


def test_what_the_runtime_lists_trains():
    qdq, batch = case("LSTM")
    losses = [
        onnxqat.Trainer(qdq, provider=name, threads=1, layout="plain").step(batch)
        for name in ort.get_available_providers()
    ]
    np.testing.assert_allclose(losses, losses[-1], rtol=1e-5)
