"""Goals for a gripper that is driven by actions, in whichever of the two action packages is installed."""

from __future__ import annotations

from typing import Any

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.adapter import Endpoint
from lightvla_ros.robots.description import GripperAction
from lightvla_ros.robots.gripper import Motion


class FrankaGoals:
    """franka_msgs: Move to open, Grasp to close, which holds with a force."""

    def __init__(self, facts: GripperAction, grasp: Any, move: Any) -> None:
        self._facts, self._grasp, self._move = facts, grasp, move
        self.endpoints = (
            Endpoint(f"{facts.topic}/move", move, "the gripper", "action"),
            Endpoint(f"{facts.topic}/grasp", grasp, "the gripper", "action"),
        )

    def goal(self, motion: Motion) -> tuple[str, Any]:
        facts = self._facts
        if motion == "open":
            return self.endpoints[0].name, self._move.Goal(width=facts.max_width, speed=facts.speed)
        goal = self._grasp.Goal(width=0.0, speed=facts.speed, force=facts.force)
        goal.epsilon.inner = goal.epsilon.outer = facts.epsilon
        return self.endpoints[1].name, goal

    def may_hold(self, goal: Any) -> bool:
        """Whether a failed goal may have left an object between the fingers: no, its epsilon counts that as success."""
        return False


class GripperCommandGoals:
    """control_msgs: one action for both; its position is one finger's, half the width, as franka_ros2 takes it."""

    def __init__(self, facts: GripperAction, action: Any) -> None:
        self._facts, self._action = facts, action
        self.endpoints = (Endpoint(f"{facts.topic}/gripper_action", action, "the gripper", "action"),)

    def goal(self, motion: Motion) -> tuple[str, Any]:
        goal = self._action.Goal()
        goal.command.position = self._facts.max_width / 2 if motion == "open" else 0.0
        goal.command.max_effort = self._facts.force
        return self.endpoints[0].name, goal

    def may_hold(self, goal: Any) -> bool:
        """See FrankaGoals.may_hold. Closing on an object ends short of position 0, which franka_ros2 aborts."""
        return bool(goal.command.position == 0.0)


def gripper_goals(facts: GripperAction) -> FrankaGoals | GripperCommandGoals:
    """Raises LightVLAError where neither package is installed."""
    try:
        from franka_msgs.action import Grasp, Move

        return FrankaGoals(facts, Grasp, Move)
    except ImportError:
        pass
    try:
        from control_msgs.action import GripperCommand

        return GripperCommandGoals(facts, GripperCommand)
    except ImportError:
        raise LightVLAError(
            "a Franka's gripper is driven by actions of franka_msgs or control_msgs, and neither is installed here; "
            "source the franka_ros2 workspace, or install control_msgs"
        ) from None
