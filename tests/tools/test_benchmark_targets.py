import pytest

from onnxqat.names import TARGETS
from tools import benchmark_targets as benchmark
from tools.readme import section

ROW = {
    "nodes": "3 of 4",
    "check": {"refused": 0, "split": 1, "float": 2},
    "float": 93.0,
    "trained": 92.5,
    "deployed": 92.44,
    "agreement": 99.951,
    "rms": 0.0123,
}
RESULT = ROW | {"images": 50, "runtime": "onnxruntime 1"}


def test_table_has_a_row_for_each_result_and_says_how_it_was_run():
    results = {"unet/qnn": RESULT, "unet/qnn/own": {"rms": 0.5}, "bert/ort-cpu": RESULT}
    _, _, first, second, _, said = benchmark.table(results).splitlines()
    assert (
        first == "| BERT-like | `ort-cpu` | 3 of 4 | 1 split, 2 float | 93.0 % | 92.5 % | 92.4 % | 99.95 % | 0.012 |  |"
    )
    assert (
        second
        == "| U-Net-like | `qnn` | 3 of 4 | 1 split, 2 float | 93.0 % | 92.5 % | 92.4 % | 99.95 % | 0.012 | 0.5 |"
    )
    assert said == "onnxruntime 1: emulated; onnxruntime 1: run. Numbers of test images: 50 (emulated), 50 (run)."


def test_page_has_a_place_for_the_table():
    assert section("targets", benchmark.PAGE).startswith(benchmark.HEADER)


@pytest.mark.parametrize("way", benchmark.WAYS)
def test_ways_are_of_targets_that_there_are(way):
    assert benchmark.WAYS[way].target in TARGETS
