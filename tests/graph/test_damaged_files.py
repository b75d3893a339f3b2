"""Damaged model files: whatever bytes come, loading ends in a model or in one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxqat.errors import OnnxqatError
from onnxqat.graph import io

MODEL = Path(__file__).parents[2] / "models" / "separable.onnx"
WHOLE = MODEL.read_bytes()


def _structure() -> list[int]:
    """Positions of the bytes that are no weights: damage to a weight gives another valid model."""
    weights = bytearray(len(WHOLE))
    for tensor in onnx.load_from_string(WHOLE).graph.initializer:
        if len(tensor.raw_data) > 16:
            start = WHOLE.index(tensor.raw_data)
            weights[start : start + len(tensor.raw_data)] = b"\1" * len(tensor.raw_data)
    return [position for position, is_weight in enumerate(weights) if not is_weight]


STRUCTURE = _structure()
FLIPS = st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 7)), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "model.onnx"


def loads_or_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    message = ""
    try:
        io.load(file, oldest_opset=7)
    except OnnxqatError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


@settings(max_examples=200)
@given(flips=FLIPS)
def test_file_with_flipped_bits_loads_or_is_refused(file, flips):
    damaged = bytearray(WHOLE)
    for position, bit in flips:
        damaged[position] ^= 1 << bit
    loads_or_is_refused(file, bytes(damaged))


@settings(max_examples=100)
@given(length=st.integers(0, len(WHOLE) - 1))
def test_file_that_ends_early_loads_or_is_refused(file, length):
    loads_or_is_refused(file, WHOLE[:length])


@settings(max_examples=100)
@given(start=st.sampled_from(STRUCTURE), inserted=st.binary(min_size=1, max_size=64), replaced=st.integers(0, 64))
def test_file_with_foreign_bytes_loads_or_is_refused(file, start, inserted, replaced):
    loads_or_is_refused(file, WHOLE[:start] + inserted + WHOLE[start + replaced :])


@settings(max_examples=100)
@given(content=st.binary(max_size=256))
def test_any_bytes_load_or_are_refused(file, content):
    loads_or_is_refused(file, content)
