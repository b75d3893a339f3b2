import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

X = 3 * normal(4, 50)
ONE_INPUT = {
    "HardSwish": ("", functional.hardswish),
    "HardSigmoid": (" <alpha=0.25, beta=0.4>", lambda x: torch.clip(0.25 * x + 0.4, 0, 1)),
    "Elu": (" <alpha=1.0>", functional.elu),
    "Elu with alpha": (" <alpha=0.7>", lambda x: functional.elu(x, 0.7)),
    "Celu": (" <alpha=0.7>", lambda x: functional.celu(x, 0.7)),
    "Selu": ("", functional.selu),
    "Selu with alpha": (" <alpha=0.7, gamma=1.3>", lambda x: 1.3 * functional.elu(x, 0.7)),
    "Softplus": ("", functional.softplus),
    "Softsign": ("", functional.softsign),
    "ThresholdedRelu": (" <alpha=0.8>", lambda x: torch.where(x > 0.8, x, 0.0)),
    "Shrink": (" <lambd=0.6, bias=0.6>", lambda x: functional.softshrink(x, 0.6)),
    "Mish": ("", functional.mish),
    "Gelu": ("", functional.gelu),
    "Gelu by tanh": (' <approximate="tanh">', lambda x: functional.gelu(x, approximate="tanh")),
    "LeakyRelu": (" <alpha=0.2>", lambda x: functional.leaky_relu(x, 0.2)),
    "Relu": ("", torch.relu),
    "Sigmoid": ("", torch.sigmoid),
    "Tanh": ("", torch.tanh),
    "Erf": ("", torch.erf),
    "Atan": ("", torch.atan),
    "Asinh": ("", torch.asinh),
    "Sinh": ("", torch.sinh),
    "Cosh": ("", torch.cosh),
    "Sin": ("", torch.sin),
    "Abs": ("", torch.abs),
    "Reciprocal": ("", torch.reciprocal),
}


@pytest.mark.parametrize("name", ONE_INPUT)
@pytest.mark.parametrize("shape", ["4,50", "A,B"], ids=["fixed", "dynamic"])
def test_activation(name, shape):
    attributes, function = ONE_INPUT[name]
    proto = model(f"(float[{shape}] x) => (float[p,q] y) {{ y = {name.split()[0]}{attributes} (x) }}", opset=20)
    assert_matches_torch(proto, {"x": X}, lambda x: function(x), tolerance=1e-4)


@pytest.mark.parametrize("name", ["HardSwish", "Elu", "Celu", "Selu", "Mish", "Softplus", "Gelu"])
def test_the_gradient_stays_finite_far_out(name):
    x = np.array([-1e4, -100, -30, 0, 30, 80], np.float32)
    proto = model(f"(float[6] x) => (float[p] y) {{ y = {name} (x) }}", opset=20)
    function = ONE_INPUT[name][1] if name != "Celu" else functional.celu
    assert_matches_torch(proto, {"x": x}, lambda x: function(x), tolerance=1e-4)


@pytest.mark.parametrize("slope", [(1,), (5, 1), (3, 5, 6)], ids=["one", "per channel", "per element"])
@pytest.mark.parametrize("wrt", [["x"], ["slope"], ["x", "slope"]], ids=" ".join)
def test_parametric_relu(slope, wrt):
    dims = ",".join(map(str, slope))
    proto = model(f"(float[3,5,6] x, float[{dims}] slope) => (float[p,q,r] y) {{ y = PRelu (x, slope) }}")
    feeds = {"x": normal(3, 5, 6), "slope": normal(*slope, seed=1)}
    assert_matches_torch(proto, feeds, lambda x, slope: torch.where(x < 0, slope * x, x), wrt)
