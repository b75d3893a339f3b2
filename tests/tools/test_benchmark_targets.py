import numpy as np
import pytest

from onnxqat.names import TARGETS
from tools.benchmark_targets import measure
from tools.benchmark_targets.__main__ import PAGE
from tools.benchmark_targets.nets import NETS, WAYS
from tools.benchmark_targets.table import HEADER, PRETRAINED, table
from tools.readme import section
from tools.real_models.model import Examples

ROW = {
    "nodes": "3 of 4",
    "check": {"refused": 0, "split": 1, "float": 2},
    "float": 93.0,
    "trained": 92.5,
    "deployed": 92.44,
    "agreement": 99.951,
    "rms": 0.0123,
    "size": 1.0,
}
RESULT = ROW | {"images": 50, "runtime": "onnxruntime 1", "processor": "Z80"}


def test_table_has_a_row_for_each_result_and_says_how_it_was_run():
    results = {"unet/qnn": RESULT, "unet/qnn/own": {"rms": 0.5}, "bert/ort-cpu": RESULT, "pitch/ort-cpu": RESULT}
    results["ocr/qnn"] = {"refused": "too many axes"}
    found = table(results).splitlines()
    cells = "3 of 4 | 1 split, 2 float | 93.0 % | 92.5 % | 92.4 % | 99.95 % |"
    assert found[2:] == [
        f"| BERT-like | `ort-cpu` | {cells} 0.012 |  | 50 |",
        f"| U-Net-like | `qnn` | {cells} 0.012 | 0.5 | 50 |",
        "",
        *PRETRAINED.splitlines(),
        "| text recognition | `qnn` | refused |  |  |  |  |  |  |  |",
        f"| pitch | `ort-cpu` | {cells} 1.2% | 50 |",
        "",
        "onnxruntime 1: emulated; onnxruntime 1: run. Measured on Z80.",
    ]


def test_outputs_of_an_emulator_are_computed_once(tmp_path):
    ran = []

    class Host:
        def run(self, name, inputs):
            ran.append(name)
            return {"y": inputs["x"] * 2}

    batches = [Examples({"x": np.full(2, number)}, [0, 0]) for number in range(3)]
    first = measure._resumed(Host(), batches[:2], tmp_path / "kept")
    again = measure._resumed(Host(), batches, tmp_path / "kept")
    assert len(ran) == 3
    np.testing.assert_array_equal([*first, np.full(2, 4)], again)


def test_page_has_a_place_for_the_table():
    assert section("targets", PAGE).startswith(HEADER)


@pytest.mark.parametrize("way", WAYS)
def test_ways_are_of_targets_that_there_are(way):
    assert WAYS[way].target in TARGETS


def test_networks_are_of_both_kinds():
    assert {net.trained for net in NETS.values()} == {True, False}
