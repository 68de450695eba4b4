"""Child processes end with the command that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

PARENT = """
import time
from mmfuse_ros.cli.processes import Processes
import os
with Processes(dict(os.environ)) as processes:
    processes.start("child", "http.server", ["0", "--bind", "127.0.0.1"])
    print(processes.pid("child"), flush=True)
    time.sleep(60)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_command_leaves_no_child():
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)
