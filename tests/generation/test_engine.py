"""Laws of the engines: how many requests are handed over at once, and that nothing is loaded before the first reply."""

import subprocess
import sys

import pytest

from emotune.generation.engine import Request, leading


@pytest.mark.parametrize(("rows", "count"), [(100, 3), (12, 3), (11, 2), (6, 1), (5, 1), (1, 1)])
def test_the_first_requests_that_fit_are_taken_and_one_always(rows: int, count: int) -> None:
    requests = [Request((1,), tuple(range(keys))) for keys in (6, 2, 4)]
    assert leading(requests, rows) == count


def test_a_guided_candidate_counts_twice() -> None:
    requests = [Request((1,), (1, 2, 3), twin=(1, 2)), Request((1, 2, 3), (4,), twin=(2,)), Request((1,), (5,))]
    assert [request.rows for request in requests] == [6, 2, 1]
    assert [request.longest for request in requests] == [2, 3, 1]
    assert [leading(requests, rows) for rows in (9, 8, 7, 5)] == [3, 2, 1, 1]


def test_an_engine_is_chosen_without_loading_what_it_samples_by() -> None:
    code = """
import sys
from emotune.preferences.candidates import engine_of
from emotune.generation.params import Generation
engine_of(Generation(engine="server", model="sft"), None, None)
engine_of(Generation(engine="local", model=None), None, None)
print(sorted({"openai", "httpx2", "torch", "psutil"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
