"""The node that brings a graph up and watches it, as a person would by the lifecycle and arm services.

What it does with the graph besides, such as an episode, is in demo_operator.py and in the benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError

# First of all that imports ROS: it refuses a mixture of two installations.
from lightvla_ros.lifecycle import LATCHED_QOS  # isort: split

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Log
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger

_ERROR_LEVEL = 40  # rcl_interfaces/Log.ERROR, whose Python type differs between distributions
_SERVICE_TIMEOUT = 20.0  # s, for a node to come up; DDS discovery alone takes up to 2.3 s
_CONFIGURE_TIMEOUT = 120.0  # s, for the policy to load and warm up


class GraphOperator(Node):
    """Operates a graph of policy and executor. alive: raises when a process of the graph has died.

    It hears only what costs the graph nothing: diagnostics, state, contract and errors.
    """

    def __init__(self, name: str = "operator", alive: Callable[[], None] = lambda: None) -> None:
        super().__init__(name)
        self._alive = alive
        self._diagnostics: dict[str, dict[str, str]] = {}
        self._errors: list[str] = []
        self._contract: PolicyContract | None = None
        self.state = ""
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.create_subscription(Log, "/rosout", self._on_log, QoSProfile(depth=100))
        self.create_subscription(String, "executor/state", self._on_state, LATCHED_QOS)
        self.create_subscription(String, "policy/contract", self._on_contract, LATCHED_QOS)

    def bring_up(self) -> None:
        """Configure and activate policy, then executor. Raises LightVLAError with the node's own sentence."""
        self.change("policy", Transition.TRANSITION_CONFIGURE, _CONFIGURE_TIMEOUT)
        self.spin_until(lambda: self._contract is not None, _SERVICE_TIMEOUT, "the policy's contract has not arrived")
        # The executor's own subscription may match a little later than this one's.
        self.change("executor", Transition.TRANSITION_CONFIGURE, _SERVICE_TIMEOUT, retries=5)
        self.change("policy", Transition.TRANSITION_ACTIVATE, _SERVICE_TIMEOUT)
        self.change("executor", Transition.TRANSITION_ACTIVATE, _SERVICE_TIMEOUT)

    def arm(self) -> None:
        """Arm, as soon as joint states and a chunk are there."""
        deadline = time.monotonic() + _SERVICE_TIMEOUT
        while not (answer := self._call(Trigger, "executor/arm", Trigger.Request(), _SERVICE_TIMEOUT)).success:
            if time.monotonic() > deadline:
                raise LightVLAError(f"the executor does not arm: {answer.message}")
            self.spin_for(0.2)

    def disarm(self) -> None:
        self._call(Trigger, "executor/disarm", Trigger.Request(), 2.0)

    def watch(self, seconds: float) -> None:
        """Only look on for this long; raises when a process of the graph has died."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.spin_for(min(0.5, max(0.0, until - time.monotonic())))
            self._alive()

    def spin_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def spin_until(self, done: Callable[[], bool], timeout: float, otherwise: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            self._alive()
            if time.monotonic() > deadline:
                raise LightVLAError(f"{otherwise} after {timeout:g} s")
            rclpy.spin_once(self, timeout_sec=0.1)

    def _call(self, kind: Any, name: str, request: Any, timeout: float) -> Any:
        client = self.create_client(kind, name)
        try:
            self.spin_until(client.service_is_ready, timeout, f"the service {name} has not appeared")
            future = client.call_async(request)
            self.spin_until(future.done, timeout, f"the service {name} has not answered")
            return future.result()
        finally:
            self.destroy_client(client)

    def change(self, node: str, transition: int, timeout: float, retries: int = 0) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        for _ in range(1 + retries):
            self._errors.clear()
            if self._call(ChangeState, f"{node}/change_state", request, timeout).success:
                return
            self.spin_for(0.5)
        raise LightVLAError(self._errors[-1] if self._errors else f"the node {node} refused transition {transition}")

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            name = status.name.split(":")[0].strip("/ ")
            self._diagnostics[name] = {pair.key: pair.value for pair in status.values}

    def values(self, node: str) -> dict[str, str]:
        return self._diagnostics.get(node, {})

    def _on_log(self, message: Any) -> None:
        if message.level >= _ERROR_LEVEL:
            self._errors.append(message.msg)

    def _on_state(self, message: Any) -> None:
        self.state = message.data

    def _on_contract(self, message: Any) -> None:
        self._contract = PolicyContract.from_json(message.data, "the policy's contract")
