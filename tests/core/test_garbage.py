"""Law: no garbage is looked for while a stage imports, and as always afterwards."""

import gc

import pytest

from emotune.core import processes


@pytest.fixture
def usual():
    """The thresholds of a process that has not called it."""
    threshold = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield gc.get_threshold()
    gc.set_threshold(*threshold)


def test_garbage_is_looked_for_only_once_so_many_objects_were_made_as_imports_make(usual, monkeypatch):
    monkeypatch.setattr(processes, "IMPORTED", 20_000)
    gc.collect()
    processes.collect_when_imported()
    processes.collect_when_imported()  # a second call changes nothing
    before = [generation["collections"] for generation in gc.get_stats()]
    kept = [[] for _ in range(15_000)]
    assert [generation["collections"] for generation in gc.get_stats()] == before
    kept += [[] for _ in range(6_000)]
    assert gc.get_threshold() == usual
    before = gc.get_stats()[0]["collections"]
    kept += [[] for _ in range(5_000)]
    assert gc.get_stats()[0]["collections"] > before
