"""Python's logging, sent to the node's own log (terminal, /rosout, file)."""

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
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
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
