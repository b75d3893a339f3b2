import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

SHAPES = {"rows": (6, 5), "images": (3, 5, 2, 4)}
WEIGHTS = np.abs(normal(5, seed=1)) + 0.1


def case(operator, shape, reduction, ignored, weighted, *, second=False):
    labels = np.random.default_rng(0).integers(0, 5, (shape[0], *shape[2:]))
    labels.flat[1] = labels.flat[-1] = 2
    dims = ",".join(map(str, labels.shape))
    attributes = f'reduction="{reduction}"' + (", ignore_index=2" if ignored else "")
    inputs = f"float[{','.join(map(str, shape))}] x, int64[{dims}] t" + (", float[5] w" if weighted else "")
    result = f"float[{','.join('abcd'[: labels.ndim])}]" if reduction == "none" else "float"
    outputs = f"{result} y" + (f", float[{','.join('pqrs'[: len(shape)])}] l" if second else "")
    node = f"y{', l' if second else ''} = {operator} <{attributes}> (x, t{', w' if weighted else ''})"
    feeds = {"x": normal(*shape), "t": labels} | ({"w": WEIGHTS} if weighted else {})
    return model(f"({inputs}) => ({outputs}) {{ {node} }}"), feeds


def likelihood(log, t, w, reduction, ignored):
    """torch has no gradient of the weights; written out, it has."""
    counted = (t != 2) if ignored else torch.ones_like(t, dtype=torch.bool)
    weights = (torch.ones(5) if w is None else w)[t] * counted
    each = -weights * log.gather(1, t.unsqueeze(1)).squeeze(1)
    return {"none": each, "sum": each.sum(), "mean": each.sum() / weights.sum()}[reduction]


COMBINATIONS = pytest.mark.parametrize(
    ("shape", "reduction", "ignored", "weighted"),
    [
        (shape, reduction, ignored, weighted)
        for shape in SHAPES
        for reduction in ("none", "sum", "mean")
        for ignored in (False, True)
        for weighted in (False, True)
    ],
)


@COMBINATIONS
def test_negative_log_likelihood(shape, reduction, ignored, weighted):
    proto, feeds = case("NegativeLogLikelihoodLoss", SHAPES[shape], reduction, ignored, weighted)
    wrt = ["x", "w"] if weighted else ["x"]
    assert_matches_torch(proto, feeds, lambda x, t, w=None: likelihood(x, t, w, reduction, ignored), wrt)


@COMBINATIONS
@pytest.mark.parametrize("second", [False, True], ids=["loss alone", "log-probabilities too"])
def test_softmax_cross_entropy(shape, reduction, ignored, weighted, second):
    proto, feeds = case("SoftmaxCrossEntropyLoss", SHAPES[shape], reduction, ignored, weighted, second=second)
    wrt = ["x", "w"] if weighted else ["x"]

    def expected(x, t, w=None):
        log = functional.log_softmax(x, 1)
        loss = likelihood(log, t, w, reduction, ignored)
        return [loss, log] if second else loss

    assert_matches_torch(proto, feeds, expected, wrt)
