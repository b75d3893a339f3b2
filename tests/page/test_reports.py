"""Reports of the commands, opened in a browser."""

import numpy as np
import pytest

from tests.classifier import LABELS, ROWS, write
from tests.page.browser import opened

SECTIONS = {
    "train": ["Curves", "Layers", "Graph"],
    "verify": ["Summary", "Kernels", "Layers", "Graph"],
    "run": ["Summary", "Kernels", "Curves", "Layers", "Graph"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write(tmp_path_factory.mktemp("reports"))
    np.savez(made / "data.npz", x=np.tile(ROWS, (4, 1)), label=np.tile(LABELS, 4))
    return made


def arguments(folder, command):
    data = ("--data", folder / "data.npz")
    if command == "train":
        return ("train", folder / "qdq.onnx", *data, "-o", folder / "trained.onnx")
    if command == "run":
        return ("run", folder / "float.onnx", *data, "-o", folder / "deployed.onnx", "--max-drop", "100")
    return (
        "verify",
        folder / "qdq.onnx",
        folder / "int8.onnx",
        "--float",
        folder / "float.onnx",
        *data,
        "--max-drop",
        "100",
    )


@pytest.mark.parametrize("command", SECTIONS)
def test_report_has_every_section_in_a_browser(command, folder, call):
    call("fold", folder / "qdq.onnx", "-o", folder / "int8.onnx")
    page = folder / f"{command}.html"
    status, said, errors = call(*arguments(folder, command), "--report", page)
    assert (status, f"wrote {page}" in said) == (0, True), errors
    with opened(page, width=360) as (tab, complaints):
        assert [head.inner_text() for head in tab.query_selector_all("h2")] == SECTIONS[command]
        rows = tab.inner_text("#layers tbody")
        assert "Gemm" in rows
        assert "W8A8" in rows
        assert complaints == []


def test_a_report_does_not_overwrite_another_file(folder, call):
    status, _, errors = call(*arguments(folder, "train"), "--report", folder / "data.npz")
    assert status == 2
    assert (
        errors == f"error: {folder / 'data.npz'}: exists and is not an HTML file; remove it, or choose another path\n"
    )
