"""What a fault test says of a node: its counters add up, and how long things took."""

from __future__ import annotations

import json
import os
import time

from mmfuse_ros.samples import Modality


def _total(values, prefix):
    return sum(int(n) for key, n in values.items() if key.startswith(prefix))


def check_accounts(rows, modalities=tuple(Modality)):
    """Hold the counters of one publication of diagnostics against each other, exactly."""
    for modality in modalities:
        values = rows[f"input {modality}"][1]
        count = {
            k: int(values[k]) for k in ("messages", "accepted", "received", "used", "pending")
        }
        assert count["messages"] == count["accepted"] + _total(values, "rejected_"), values
        dropped = _total(values, "dropped_")
        assert count["received"] == count["used"] + count["pending"] + dropped, values
        if modality is not Modality.AUDIO:  # one message, one frame or sample
            assert count["accepted"] == count["received"], values
    sync, worker = rows["sync"][1], rows["worker"][1]
    waiting = int(sync["waiting"]) + _total(sync, "discarded_")
    assert int(sync["references"]) == int(sync["windows"]) + waiting, sync
    assert int(sync["windows"]) == int(worker["submitted"]), (sync, worker)
    finished = int(worker["done"]) + int(worker["pending"]) + _total(worker, "dropped_")
    assert int(worker["submitted"]) == finished, worker


class Fault:
    """One row of the table in docs/reliability.md, measured.

    Rows are appended as JSON to the file that MMFUSE_FAULTS names, where it is set.

    Args:
        robot: publishes the streams and watches the node.
        name: the fault.
        injected: how it is brought about.
    """

    def __init__(self, robot, name, injected):
        self._robot = robot
        self._begun = time.monotonic()
        self._row = {"fault": name, "injected": injected}

    def detected(self, condition, within_s=20.0):
        """Run the robot until the node has noticed; `condition` gives what it says."""
        self._row["detect_s"] = self._until(condition, within_s)

    def mended(self, condition, within_s=20.0):
        """Run the robot, whose fault is mended now, until the node is well again."""
        self._begun = time.monotonic()
        self._row["recover_s"] = self._until(condition, within_s)
        check_accounts(self._robot.watch.diagnostics)

    def write(self, did, counted):
        """Write the row down: what the node did, and what was lost and counted."""
        self._row.update(did=did, counted=counted)
        path = os.environ.get("MMFUSE_FAULTS")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps(self._row) + "\n")

    def _until(self, condition, within_s):
        assert self._robot.run(within_s, until=condition), (
            self._row,
            self._robot.watch.diagnostics,
        )
        return round(time.monotonic() - self._begun, 2)
