"""Reading ahead: the same things in the same order, never too many, and errors where they belong."""

from __future__ import annotations

import threading

import pytest

from hf_evomerge.merging.ahead import ahead


def test_so_many_and_no_more_are_read_ahead():
    """Beside what was given last as many are read as was asked for, in their order, by another thread."""
    begun, threads, turns = [], set(), threading.Semaphore(0)

    def read(item: int) -> int:
        begun.append(item)
        threads.add(threading.get_ident())
        turns.release()
        return item * item

    found = ahead(range(10), read, 3)
    assert begun == []
    for number in range(10):
        assert next(found) == number * number
        for _ in range(4 if number == 0 else number < 7):  # the first, and three beside it; then one for each
            assert turns.acquire(timeout=60)
        assert begun == list(range(min(10, number + 4)))
    assert list(found) == []
    assert threads.isdisjoint({threading.get_ident()})


def test_an_error_comes_when_it_is_its_turn():
    """What came before is given, the error reaches the caller, and nothing is read after."""
    read = []

    def fail(item: int) -> int:
        read.append(item)
        if item == 2:
            raise OSError("the disk is gone")
        return item

    found = ahead(range(100), fail, 1)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert read == [0, 1, 2]
    assert list(found) == []


def test_whoever_stops_ends_the_thread():
    """Closed before the end, it reads no more, and its thread is gone."""
    before, read = threading.active_count(), []
    found = ahead(range(100), read.append, 2)
    next(found)
    found.close()
    assert threading.active_count() == before
    assert len(read) <= 3
