"""The parameters of the node `executor`, and what they mean for the execution.

Who declares and reads them is in executor_node.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ExecutionMode
from lightvla_ros.execution import ExecutionSettings
from lightvla_ros.lifecycle import Parameter

# The longest control period unless the contract's is longer, s: every watchdog looks once a period.
_LONGEST_PERIOD = 0.2

# Changed while the node runs, these take effect at the next step boundary.
RUN_TIME_PARAMETERS = (
    Parameter("control_rate", 0.0, "Commands per second, Hz; 0 takes the contract's rate.", 0.0, 1000.0),
    Parameter(
        "execution",
        "newest",
        "Which chunks make a command: the newest, or all that plan the moment (temporal ensembling).",
        choices=("newest", "ensemble"),
    ),
    Parameter("ensemble_decay", 0.01, "Weight of the i-th oldest chunk is exp(-decay i).", 0.0, 10.0),
    Parameter("blend_time", 0.08, "Time in which the jump between two chunks fades, s; 0 for none.", 0.0, 2.0),
    Parameter("speed", 1.0, "Speed of execution: at 0.5 every planned step takes twice as long.", 0.1, 1.0),
    Parameter("starvation_timeout", 1.0, "Longest time without an executable step while armed, s.", 0.01, 60.0),
    Parameter("state_timeout", 0.3, "Oldest joint state, by its stamp and by its receipt, s.", 0.01, 10.0),
    Parameter("future_tolerance", 0.05, "How far ahead of the clock a stamp may be, s.", 0.0, 1.0),
    Parameter("max_clock_leap", 0.5, "Largest jump ahead of the ROS clock, s.", 0.01, 10.0),
    Parameter("require_heartbeat", False, "Stop when nothing comes on the topic operator/heartbeat."),
    Parameter("heartbeat_timeout", 0.5, "Longest silence of operator/heartbeat, s.", 0.01, 10.0),
)


def execution_settings(value: Callable[[str], Any], contract: PolicyContract) -> ExecutionSettings:
    """value: a parameter's value by its name. Raises LightVLAError for values that are not possible."""
    mode = ExecutionMode(
        period=_period(value("control_rate"), contract),
        blend_time=value("blend_time"),
        ensemble_decay=value("ensemble_decay") if value("execution") == "ensemble" else None,
        speed=value("speed"),
    )
    return ExecutionSettings(
        mode,
        starvation_timeout=value("starvation_timeout"),
        state_timeout=value("state_timeout"),
        future_tolerance=value("future_tolerance"),
        max_clock_leap=value("max_clock_leap"),
        heartbeat_timeout=value("heartbeat_timeout") if value("require_heartbeat") else None,
    )


def _period(rate: float, contract: PolicyContract) -> float:
    slowest = min(1.0 / _LONGEST_PERIOD, contract.control_rate)
    if 0.0 < rate < slowest:
        raise LightVLAError(
            f"control_rate is {rate:g} Hz; the watchdogs look once a period, so it should be at least {slowest:g} Hz, "
            "or 0 for the contract's"
        )
    return 1.0 / (rate or contract.control_rate)
