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
# Windows that fail their checks come at frame rate: after so much quiet the next is logged anew.
_QUIET_S = 2.0


class Worker:
    """Run windows one at a time on a thread of its own.

    Args:
        run: turns a window into a result; runs on the worker's thread only.
        on_result: receives each result, on the worker's thread.

    A window that raises InputError is counted, passed over and named in `input_error`. Any other
    error sets `failure`; the next windows are tried, and after three failures in a row the worker
    halts until `resume()`. A task that raises sets `refused`.

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
        self.input_error = ""
        self.input_error_s = float("-inf")
        self._input_reason = ""
        self.submitted = 0
        self.done = 0
        self.dropped = dict.fromkeys(
            ("busy", "input", "failed", "halted", "disabled", "stopped"), 0
        )
        self._thread = threading.Thread(target=self._loop, name="mmfuse_worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the window at hand; return whether it ended in time.

        The window at hand gives no result any more. May be called again.
        """
        with self._wake:
            self._stopping = True
            if self._window is not None:
                self._window = None
                self.dropped["stopped"] += 1
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, window: Window) -> None:
        """Put a window into the mailbox; one that still waits there is dropped and counted."""
        with self._wake:
            self.submitted += 1
            refused = self._refuses()
            if refused:
                self.dropped[refused] += 1
                return
            if self._window is not None:
                self.dropped["busy"] += 1
            self._window = window
            self._wake.notify()

    def _refuses(self) -> str:
        """Return why no window is taken now, or "" where one is."""
        if self._stopping:
            return "stopped"
        if not self.enabled:
            return "disabled"
        return "halted" if self.halted else ""

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
    def stopping(self) -> bool:
        return self._stopping

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
            # Who asked for the end may have given its outputs to another worker meanwhile.
            stopped = self._stopping
            if not stopped:
                self._on_result(result)
        except InputError as error:
            self._note_input_error(window, error)
            self._finish("input")
        except Exception as error:  # thread boundary: the node stays up and says why
            _LOG.exception("window at %d ns failed", window.stamp_ns)
            self._finish("failed", f"{type(error).__name__}: {error}")
        else:
            self._finish("stopped" if stopped else "")

    def _finish(self, dropped: str, failure: str = "") -> None:
        """Account for the window at hand, and for one that waits when the worker halts."""
        with self._wake:
            self._busy_since = None
            if dropped:
                self.dropped[dropped] += 1
            else:
                self.done += 1
                self._failures = 0
                self.failure = ""
            if failure:
                self._failures += 1
                self.failure = failure
                if self.halted and self._window is not None:
                    self._window = None
                    self.dropped["halted"] += 1

    def _note_input_error(self, window: Window, error: InputError) -> None:
        now = time.monotonic()
        if error.reason != self._input_reason or now - self.input_error_s > _QUIET_S:
            _LOG.warning("window at %d ns passed over: %s", window.stamp_ns, error)
        self._input_reason = error.reason
        self.input_error = str(error)
        self.input_error_s = now


def _name_thread(name: str) -> None:
    """Show a thread's name in `top -H` and in /proc, as Python does from 3.14 on."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
            file.write(name)
    except OSError:  # not Linux, or /proc is not mounted
        pass
