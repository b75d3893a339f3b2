import numpy as np
import pytest
import torch

from onnxqat.graph import io
from onnxqat.graph.pads import make_pads_explicit
from tests.models import batches, model, outputs, random

SIZES = [(7, 9), (8, 8), (5, 6)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    "node",
    [
        "y = Conv<auto_pad='{}', strides=[2,1]>(x, w)",
        "y = Conv<auto_pad='{}', strides=[2,2]>(x, w)",
        "y = MaxPool<auto_pad='{}', kernel_shape=[3,2], strides=[2,2]>(x)",
        "y = AveragePool<auto_pad='{}', kernel_shape=[3,2], strides=[2,2]>(x)",
    ],
    ids=["strided", "strided twice", "max", "average"],
)
def test_explicit_pads_give_the_same_answers(node, mode, size):
    body = f"(float[N,4,{size[0]},{size[1]}] x) => (float[N,M,A,B] y) {{ {node.format(mode)} }}".replace("'", '"')
    proto = model(body, w=random(5, 4, 3, 3))
    explicit = io.load(proto)
    make_pads_explicit(explicit)
    (changed,) = explicit.graph
    assert "auto_pad" not in changed.attributes
    (batch,) = batches(proto, 1)
    np.testing.assert_array_equal(outputs(io.to_proto(explicit), batch)[0], outputs(proto, batch)[0])


def test_node_of_unknown_size_keeps_its_automatic_padding():
    proto = model(
        '(float[N,4,H,W] x) => (float[N,M,A,B] y) { y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) }',
        w=random(5, 4, 3, 3),
    )
    kept = io.load(proto)
    make_pads_explicit(kept)
    assert next(iter(kept.graph)).attributes.get_string("auto_pad") == "SAME_UPPER"


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_dilated_kernels_are_padded_over_their_whole_reach(mode):
    weight = random(5, 4, 3, 3)
    body = f'(float[N,4,7,7] x) => (float[N,M,A,B] y) {{ y = Conv<auto_pad="{mode}", dilations=[2,2]>(x, w) }}'
    explicit = io.load(model(body, w=weight))
    make_pads_explicit(explicit)
    x = random(2, 4, 7, 7)
    expected = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight), dilation=2, padding="same").numpy()
    # sums of 36 products in another order
    np.testing.assert_allclose(outputs(io.to_proto(explicit), {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
