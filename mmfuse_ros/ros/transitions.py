"""Guards around lifecycle transitions: what they raise is told, undone and answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.ros.logging import traceback_of


class Undoing(Protocol):
    """A lifecycle node that can take back the half of a transition that was done."""

    def get_logger(self) -> Any: ...

    def show_fault(self, text: str) -> None: ...

    def undo(self, transition: str, state: LifecycleState) -> None: ...


NodeT = TypeVar("NodeT", bound=Undoing)
Transition = Callable[[NodeT, LifecycleState], TransitionCallbackReturn]


def guarded(transition: Transition[NodeT]) -> Transition[NodeT]:
    """Log what a transition raises, and undo its half: rclpy would swallow it."""

    def run(self: NodeT, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except MmfuseError as error:
            self.get_logger().error(str(error))
            self.show_fault(str(error))
        except ExternalShutdownException:
            self.get_logger().info("told to stop; the model is not loaded further")
        except Exception as error:  # transition boundary: the node stays up and says why
            self.get_logger().error(f"{transition.__name__} failed\n{traceback_of(error)}")
            self.show_fault(f"{type(error).__name__}: {error}")
        # Outside of the handlers: a traceback there would hold what is to be released.
        self.undo(transition.__name__, state)
        return TransitionCallbackReturn.FAILURE

    run.__name__ = transition.__name__
    return run


def refusing(change: Callable[[Any, Any], Any], node: LifecycleNode) -> Callable[..., Any]:
    """Answer a transition that the state does not allow: rclpy raises, and never replies."""

    def run(request: Any, response: Any) -> Any:
        try:
            return change(request, response)
        except RuntimeError as error:  # rclpy's RCLError; a transition's own errors end in it
            node.get_logger().error(f"transition refused: {str(error).splitlines()[0]}")
            response.success = False
            return response

    return run
