"""The node's log: Python's logging sent to it (terminal, /rosout, file), errors as text."""

from __future__ import annotations

import logging
import traceback

from rclpy.node import Node


class _RosHandler(logging.Handler):
    def __init__(self, node: Node) -> None:
        super().__init__()
        self._log = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += "\n" + traceback_of(record.exc_info[1])
        # rclpy insists that one call site keeps one severity.
        if record.levelno >= logging.ERROR:
            self._log.error(text)
        elif record.levelno >= logging.WARNING:
            self._log.warning(text)
        else:
            self._log.info(text)


def forward_logging(node: Node) -> None:
    """Send what `mmfuse_ros` logs through the node's logger, in place of Python's handlers."""
    logger = logging.getLogger("mmfuse_ros")
    logger.handlers = [_RosHandler(node)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def traceback_of(error: BaseException) -> str:
    """Return an error as Python prints it."""
    return "".join(traceback.format_exception(error)).rstrip()
