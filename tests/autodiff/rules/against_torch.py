"""The independent oracle of gradient tests: torch autograd on the same function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch

from onnxqat import gradients
from tests.autodiff.kernels import WITH_KERNELS

_HEADER = '<ir_version: 10, opset_import: ["": {}]>'


def model(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{_HEADER.format(opset)} g {text}")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_matches_torch(
    proto: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    function: Callable[..., torch.Tensor | Sequence[torch.Tensor]],
    wrt: Sequence[str] | None = None,
    tolerance: float = 2e-5,
) -> None:
    """Compares outputs and gradients of Σ output·cotangent, by all engines; `function` takes the feeds by name."""
    wrt = list(feeds) if wrt is None else wrt
    tensors = {name: torch.tensor(np.asarray(value)).requires_grad_(name in wrt) for name, value in feeds.items()}
    results = function(**tensors)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    names = [output.name for output in proto.graph.output]
    cotangents = {
        name: normal(*result.shape, seed=i) for i, (name, result) in enumerate(zip(names, results, strict=True))
    }
    total = sum((r * torch.tensor(cotangents[n])).sum() for n, r in zip(names, results, strict=True))
    total.backward()  # type: ignore[union-attr]
    with_kernels = WITH_KERNELS & {node.op_type for node in proto.graph.node}
    for engine in ("training", "runtime") if with_kernels else ("auto",):
        outputs, found = gradients(proto, feeds, wrt, cotangents, engine=engine)
        for name, result in zip(names, results, strict=True):
            np.testing.assert_allclose(outputs[name], result.detach().numpy(), rtol=tolerance, atol=tolerance)
        for name in wrt:
            expected = tensors[name].grad
            assert expected is not None
            np.testing.assert_allclose(found[name], expected.numpy(), rtol=tolerance, atol=tolerance, err_msg=name)
