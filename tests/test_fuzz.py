"""Five hundred broken inputs: no process dies or hangs, no traceback, no invalid output (`tools/fuzz.py` runs any number)."""

import pytest

from tools.fuzz import campaign


@pytest.mark.slow
@pytest.mark.parametrize("share", range(2), ids=["first half", "second half"])
def test_broken_input_ends_in_one_line_or_in_a_valid_model(share):
    """In two halves, for two workers."""
    numbers = list(range(250 * share, 250 * (share + 1)))
    assert [f"{failure.number}: {failure.what}: {failure.why}" for failure in campaign(numbers, seed=0)] == []
