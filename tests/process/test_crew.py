import threading

import pytest

from onnxqat.process.crew import Crew


@pytest.mark.parametrize("size", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(size):
    assert Crew(size).map(lambda item: item * 2, range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert Crew(size).map(str, []) == []


def test_all_calls_run_at_once_and_the_first_error_in_order_is_raised():
    meeting, done = threading.Barrier(3, timeout=100), []

    def call(number):
        meeting.wait()
        if number:
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match="1"):
        Crew(3)([lambda number=number: call(number) for number in range(3)])
    assert done == [0]
