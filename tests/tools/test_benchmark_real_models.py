"""The tables of the six pretrained models: what is measured replaces its line, and nothing else."""

from dataclasses import replace

from tools.benchmark_real_models import post_table, table
from tools.readme import BENCHMARKS, cells, section
from tools.real_models.run import PostTraining, Result

FOUND = Result(
    "8 bits", 99.0, 98.0, 98.5, 98.9, 98.9, 1.0, 0.26, 0.5, 7, 7, 1.0, 1e-4, 0, "AMD EPYC, 2 cores, with VNNI"
)


def test_lines_without_a_result_stay_in_the_table():
    earlier = section("real-models", BENCHMARKS)
    text = table({"pitch": {"eight": replace(FOUND, deployed=12.3)}}, earlier)
    pairs = [pair for pair in zip(text.splitlines(), earlier.splitlines(), strict=True) if pair[0] != pair[1]]
    ((new, old),) = (map(cells, pair) for pair in pairs)
    assert new[:3] == old[:3] == ["pitch", "99.0 %", "8 bits"]
    assert (new[6], new[-2:]) == ("12.3 %", ["0.0001", "AMD EPYC"])


def test_models_without_a_result_stay_in_the_table_of_what_is_not_trained():
    pitch, photos = (
        PostTraining(99.0, 97.0, 98.5, 0.25, 1.5, "one, 2 cores"),
        PostTraining(31, 30, 30.5, 0.1, 9, "other"),
    )
    earlier = post_table({"pitch": pitch})
    both = post_table({"super_resolution": photos}, earlier).splitlines()
    assert both[:-1] == earlier.splitlines()
    assert cells(both[-1]) == ["super-resolution", "31.00 dB", "30.00 dB", "30.50 dB", "-0.50 ± 0.10", "9.0", "other"]
