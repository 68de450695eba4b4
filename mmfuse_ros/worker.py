"""One thread that owns the model, fed through a mailbox of one window: the newest wins."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import Result, Window

_LOG = logging.getLogger(__name__)

# One failure may be a passing fault of a driver; three in a row are a state that a person must
# look at, and retrying at frame rate would bury its cause in the log.
_FAILURES_TO_HALT = 3


class Worker:
    """Run windows one at a time on a thread of its own.

    Args:
        run: turns a window into a result; runs on the worker's thread only.
        on_result: receives each result, on the worker's thread.

    A window that raises InputError is counted and passed over. Any other error sets `failure`;
    the next windows are tried, and after three failures in a row the worker halts until
    `resume()`. A task that raises sets `refused`.

    Attributes:
        enabled: windows that are submitted while it is False are dropped and counted.
    """

    def __init__(
        self, run: Callable[[Window], Result], on_result: Callable[[Result], None]
    ) -> None:
        self._run = run
        self._on_result = on_result
        self._wake = threading.Condition()
        self._window: Window | None = None
        self._tasks: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._busy_since: float | None = None
        self._failures = 0
        self.enabled = True
        self.failure = ""
        self.refused = ""
        self.submitted = 0
        self.done = 0
        self.dropped = {"busy": 0, "input": 0, "failed": 0, "halted": 0, "disabled": 0}
        self._thread = threading.Thread(target=self._loop, name="mmfuse_worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the window at hand; return whether it ended in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, window: Window) -> None:
        """Put a window into the mailbox; one that still waits there is dropped and counted."""
        with self._wake:
            self.submitted += 1
            if self.halted or not self.enabled:
                self.dropped["halted" if self.enabled else "disabled"] += 1
                return
            if self._window is not None:
                self.dropped["busy"] += 1
            self._window = window
            self._wake.notify()

    def post(self, task: Callable[[], None]) -> None:
        """Run `task` on the worker's thread before the next window."""
        with self._wake:
            self._tasks.append(task)
            self._wake.notify()

    def resume(self) -> None:
        """Forget past failures, and go on after a halt."""
        with self._wake:
            self._failures = 0
            self.failure = self.refused = ""

    @property
    def halted(self) -> bool:
        return self._failures >= _FAILURES_TO_HALT

    @property
    def busy_s(self) -> float:
        """Seconds that the window at hand has taken so far; 0 while idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def pending(self) -> int:
        """Windows submitted and not yet finished."""
        return (self._window is not None) + (self._busy_since is not None)

    def counters(self) -> dict[str, int]:
        """Return what became of the windows: submitted = done + pending + every `dropped_...`."""
        with self._wake:
            return {
                "submitted": self.submitted,
                "done": self.done,
                "pending": self.pending,
                **{f"dropped_{reason}": n for reason, n in self.dropped.items()},
            }

    def _loop(self) -> None:
        _name_thread(self._thread.name)
        while True:
            with self._wake:
                while not (self._stopping or self._tasks or self._window):
                    self._wake.wait()
                if self._stopping:
                    return
                task = self._tasks.popleft() if self._tasks else None
                window = None
                if task is None:
                    window, self._window = self._window, None
                    self._busy_since = time.monotonic()
            if task is not None:
                self._do(task)
            elif window is not None:
                self._process(window)

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # thread boundary: a failed task must not end the thread
            _LOG.exception("task on the worker failed")
            self.refused = f"{type(error).__name__}: {error}"

    def _process(self, window: Window) -> None:
        try:
            result = self._run(window)
            self._on_result(result)
        except InputError as error:
            _LOG.warning("window at %d ns passed over: %s", window.stamp_ns, error)
            with self._wake:
                self.dropped["input"] += 1
                self._busy_since = None
        except Exception as error:  # thread boundary: the node stays up and says why
            _LOG.exception("window at %d ns failed", window.stamp_ns)
            with self._wake:
                self._failures += 1
                self.failure = f"{type(error).__name__}: {error}"
                self.dropped["failed"] += 1
                self._busy_since = None
        else:
            with self._wake:
                self._failures = 0
                self.failure = ""
                self.done += 1
                self._busy_since = None


def _name_thread(name: str) -> None:
    """Show a thread's name in `top -H` and in /proc, as Python does from 3.14 on."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
            file.write(name)
    except OSError:  # not Linux, or /proc is not mounted
        pass
