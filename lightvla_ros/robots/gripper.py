"""When to open and close a gripper that is driven by actions: on edges, with hysteresis. Pure; no ROS."""

from __future__ import annotations

import math
from typing import Literal

from lightvla_core.contract import Gripper
from lightvla_ros.robots.description import GripperAction

Motion = Literal["open", "close"]


class GripperEdges:
    """Turns an opening (0 closed .. 1 open) a period into the few moments at which a goal is sent.

    The first clear wish is an edge, because nobody knows what the gripper was told before. Two goals are at least
    min_interval apart; a wish that comes earlier is sent then, if it lasts.
    """

    def __init__(self, facts: GripperAction) -> None:
        self._facts = facts
        self.reset()

    def reset(self) -> None:
        self._sent: Motion | None = None
        self._sent_at = -math.inf

    def forget(self) -> None:
        """The last goal came to nothing: a wish that lasts is sent again."""
        self._sent = None

    def update(self, opening: float, now: float) -> Motion | None:
        """What to begin now (s, steady clock), or None."""
        wish = self._wish(opening)
        if wish is None or wish == self._sent or now - self._sent_at < self._facts.min_interval:
            return None
        self._sent, self._sent_at = wish, now
        return wish

    def _wish(self, opening: float) -> Motion | None:
        if opening > self._facts.open_above:
            return "open"
        return "close" if opening < self._facts.close_below else None


def opening_of(value: float, gripper: Gripper) -> float:
    """A contract's gripper value -> 0 closed .. 1 open, and beyond where the value is beyond."""
    return (value - gripper.closed) / (gripper.open - gripper.closed)


def value_of_opening(opening: float, gripper: Gripper) -> float:
    """0 closed .. 1 open -> the contract's gripper value."""
    return gripper.closed + opening * (gripper.open - gripper.closed)
