"""The worker: newest window wins, errors are named, a halt needs a reset."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import Level, Result, Verdict, Window
from mmfuse_ros.worker import Worker

QUIET = Verdict(Level.OK, 0.0, 1.0, 1.0, False)


def window(stamp_ns):
    return Window(stamp_ns, "camera", {}, {})


def result(of):
    return Result(of.stamp_ns, of.frame_id, np.zeros(4, np.float32), (), {}, QUIET)


class Harness:
    """A worker whose model waits for a permit before each window."""

    def __init__(self):
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.results = []
        self.arrived = threading.Semaphore(0)
        self.error = None
        self.worker = Worker(self.run, self.on_result)
        self.worker.start()

    def run(self, of):
        self.entered.release()
        assert self.permits.acquire(timeout=5)
        if self.error is not None:
            raise self.error
        return result(of)

    def on_result(self, of):
        self.results.append(of.stamp_ns)
        self.arrived.release()

    def feed(self, stamp_ns):
        """Run one window to its end."""
        self.worker.submit(window(stamp_ns))
        assert self.entered.acquire(timeout=5)
        self.permits.release()
        done = threading.Event()
        self.worker.post(done.set)
        assert done.wait(5)


def adds_up(worker):
    count = worker.counters()
    dropped = sum(n for name, n in count.items() if name.startswith("dropped_"))
    assert count["submitted"] == count["done"] + count["pending"] + dropped, count
    return count


@pytest.fixture
def harness():
    h = Harness()
    yield h
    h.permits.release(10)
    assert h.worker.stop(5)


def test_newest_window_wins(harness):
    harness.worker.submit(window(1))
    assert harness.entered.acquire(timeout=5)
    for stamp_ns in (2, 3, 4):
        harness.worker.submit(window(stamp_ns))
    harness.permits.release(2)
    for _ in range(2):
        assert harness.arrived.acquire(timeout=5)
    assert harness.results == [1, 4]
    assert harness.worker.dropped["busy"] == 2
    assert adds_up(harness.worker)["submitted"] == 4


def test_tasks_run_on_the_workers_thread_before_the_next_window(harness):
    harness.worker.submit(window(1))
    assert harness.entered.acquire(timeout=5)
    order = []
    harness.worker.post(lambda: order.append(threading.current_thread().name))
    harness.worker.submit(window(2))
    harness.permits.release()
    assert harness.arrived.acquire(timeout=5)
    assert harness.entered.acquire(timeout=5)
    assert order == ["mmfuse_worker"]
    harness.permits.release()


def test_bad_input_is_counted_and_passed_over(harness):
    harness.error = InputError("image must be 3 channels, got 5")
    for k in range(5):
        harness.feed(k)
    assert harness.worker.dropped["input"] == 5
    assert not harness.worker.halted


def test_the_cause_of_bad_input_is_kept_and_logged_once(harness, caplog):
    harness.error = InputError("image must be 3 channels, got 5", "channels")
    for k in range(5):
        harness.feed(k)
    begun = time.monotonic()
    harness.error = InputError("a window must hold at least one usable stream", "empty")
    harness.feed(6)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "got 5" in caplog.messages[0]
    assert "usable stream" in harness.worker.input_error
    assert begun <= harness.worker.input_error_s <= time.monotonic()


def test_failure_is_named_and_forgotten_after_a_success(harness):
    harness.error = RuntimeError("device lost")
    harness.feed(1)
    assert "RuntimeError: device lost" in harness.worker.failure
    harness.error = None
    harness.feed(2)
    assert harness.worker.failure == ""
    assert harness.results == [2]


def test_three_failures_in_a_row_halt_until_resume(harness):
    harness.error = RuntimeError("out of memory")
    for k in range(3):
        harness.feed(k)
    assert harness.worker.halted
    harness.worker.submit(window(9))
    assert harness.worker.dropped["halted"] == 1
    assert adds_up(harness.worker) == {**harness.worker.counters(), "dropped_failed": 3}
    harness.worker.resume()
    harness.error = None
    harness.feed(10)
    assert harness.results == [10]


def test_a_window_that_waits_when_the_worker_halts_is_not_processed(harness):
    harness.error = RuntimeError("out of memory")
    for k in range(2):
        harness.feed(k)
    harness.worker.submit(window(2))
    assert harness.entered.acquire(timeout=5)
    harness.worker.submit(window(3))
    harness.permits.release(2)
    done = threading.Event()
    harness.worker.post(done.set)
    assert done.wait(5)
    harness.error = None
    assert not harness.entered.acquire(timeout=0.2)
    assert harness.worker.halted
    assert "out of memory" in harness.worker.failure
    count = adds_up(harness.worker)
    assert (count["dropped_failed"], count["dropped_halted"], count["done"]) == (3, 1, 0)


def test_a_failed_task_does_not_end_the_thread_and_is_named_until_resume(harness):
    harness.worker.post(lambda: 1 / 0)
    harness.feed(1)
    assert harness.results == [1]
    assert "ZeroDivisionError" in harness.worker.refused
    harness.worker.resume()
    assert harness.worker.refused == ""


def test_the_account_holds_at_every_moment(harness):
    harness.worker.submit(window(1))
    assert harness.entered.acquire(timeout=5)
    assert adds_up(harness.worker)["pending"] == 1
    harness.worker.submit(window(2))
    assert adds_up(harness.worker)["pending"] == 2
    harness.worker.enabled = False
    harness.worker.submit(window(3))
    assert adds_up(harness.worker)["dropped_disabled"] == 1
    harness.permits.release(2)
    for _ in range(2):
        assert harness.arrived.acquire(timeout=5)


def test_a_window_that_outlives_stop_gives_no_result(harness):
    harness.worker.submit(window(1))
    assert harness.entered.acquire(timeout=5)
    harness.worker.submit(window(2))
    assert not harness.worker.stop(0.05)
    harness.worker.submit(window(3))
    harness.permits.release()
    assert harness.worker.stop(5)
    assert harness.results == []
    assert adds_up(harness.worker)["dropped_stopped"] == 3


def test_stop_is_prompt_and_final():
    worker = Worker(result, lambda of: None)
    worker.start()
    assert worker.stop(2)
