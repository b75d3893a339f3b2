from __future__ import annotations

import pytest
import torch

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from onnxqat.graph.equation import Equation, parse
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

_CASES = {
    "matrix product": ("ij,jk->ik", [(2, 3), (3, 4)]),
    "batch matrix product": ("bij,bjk->bik", [(2, 3, 4), (2, 4, 2)]),
    "attention": ("bqhd,bkhd->bhqk", [(2, 3, 2, 4), (2, 5, 2, 4)]),
    "transpose": ("ij->ji", [(2, 3)]),
    "sum of one operand's label": ("ij,k->k", [(2, 3), (4,)]),
    "total": ("ij->", [(2, 3)]),
    "inner product, output left out": ("i,i", [(4,), (4,)]),
    "letters in alphabetical order, output left out": ("ba", [(2, 3)]),
    "diagonal": ("ii->i", [(3, 3)]),
    "trace": ("ii", [(3, 3)]),
    "batch diagonal": ("...ii->...i", [(2, 3, 3)]),
    "diagonal of three": ("iii->i", [(3, 3, 3)]),
    "three operands": ("ab,bc,cd->ad", [(2, 3), (3, 2), (2, 4)]),
    "broadcast ellipsis": ("...ij,...jk->...ik", [(2, 1, 3, 4), (1, 5, 4, 2)]),
}


@pytest.mark.parametrize(("equation", "shapes"), _CASES.values(), ids=_CASES.keys())
def test_einsum_is_torch_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    names = "xyz"[: len(shapes)]
    inputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in zip(names, shapes, strict=True))
    feeds = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    rank = torch.einsum(equation, *(torch.tensor(v) for v in feeds.values())).dim()
    output = "float" + (f"[{','.join('abcdef'[:rank])}]" if rank else "")
    proto = model(f'({inputs}) => ({output} r) {{ r = Einsum <equation="{equation}"> ({",".join(names)}) }}')
    assert_matches_torch(proto, feeds, lambda **tensors: torch.einsum(equation, *tensors.values()))


def test_an_ellipsis_becomes_letters_aligned_to_the_right() -> None:
    assert parse("...ij,...jk", [4, 3]) == Equation(("abij", "bjk"), "abik", "ab")


def test_an_ellipsis_over_an_operand_of_unknown_rank_is_refused() -> None:
    proto = model(
        '(float[2,3] x, int64[2] s) => (float[a,b] r) { q = Reshape (x, s) r = Einsum <equation="...i->...i"> (q) }'
    )
    del proto.graph.input[1].type.tensor_type.shape.dim[:]
    with pytest.raises(UnsupportedModelError, match="ellipsis"):
        gradients(proto, {"x": normal(2, 3)}, ["x"])
