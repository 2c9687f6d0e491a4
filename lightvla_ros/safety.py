"""Limits and the latched stop between a policy's wish and a robot's command. Pure; no ROS, no clock.

Every moment is an argument; what watches the inputs is in watchdogs.py. This is no safety function in the sense of a
standard: the e-stop is the robot's.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

Intervention = Literal["position", "step", "velocity", "non_finite"]
INTERVENTIONS: tuple[Intervention, ...] = get_args(Intervention)
State = Literal["disarmed", "armed", "stopped"]

# Rounding of a float64 sum of a position and a step; a bound is not broken by less than this.
_ROUNDING = 1e-9


class Now(NamedTuple):
    """One moment on both clocks, s: ros may be simulated, jump or stand still; steady never does."""

    ros: float
    steady: float


@dataclass(frozen=True, eq=False)
class Limits:
    """What may be commanded, each float64 (channels,), in the unit of its channel.

    lower, upper: position; max_step: change from one command to the next; max_velocity: change per s
    max_tracking_error: |last command - measured|, infinite for none
    grips: boolean, channels whose command stays on a stop although the measured value is elsewhere (a held object)
    rates: boolean, channels that are velocities, and zero on a stop
    """

    names: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    max_step: NDArray[np.float64]
    max_velocity: NDArray[np.float64]
    max_tracking_error: NDArray[np.float64]
    grips: NDArray[np.bool_]
    rates: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for key in ("lower", "upper", "max_step", "max_velocity", "max_tracking_error", "grips", "rates"):
            array = np.array(getattr(self, key))
            if array.shape != (len(self.names),):
                raise LightVLAError(f"limit {key} has shape {array.shape}, expected ({len(self.names)},)")
            self._check(key, array)
            array.flags.writeable = False
            object.__setattr__(self, key, array)
        for i in np.flatnonzero(~(self.lower < self.upper)):
            raise LightVLAError(f"{self.names[i]}: lower limit {self.lower[i]} is not below upper {self.upper[i]}")

    def largest_step(self, period: float) -> NDArray[np.float64]:
        """The largest change from one command to the next at this period (s), (channels,)."""
        smaller: NDArray[np.float64] = np.minimum(self.max_step, self.max_velocity * period)
        return smaller

    def outside(self, values: NDArray[np.float64], margin: NDArray[np.float64]) -> str | None:
        """One sentence on the first channel beyond its position limits by more than its margin, or None."""
        beyond = (values < self.lower - margin) | (values > self.upper + margin)
        for i in np.flatnonzero(beyond):
            return f"{self.names[i]} is at {values[i]:.4f}, outside its limits [{self.lower[i]}, {self.upper[i]}]"
        return None

    def _check(self, key: str, array: NDArray[np.float64]) -> None:
        if array.dtype == np.bool_:
            return
        infinite_is_none = key in ("max_velocity", "max_tracking_error")
        for name, value in zip(self.names, array.tolist(), strict=True):
            positive = key in ("lower", "upper") or value > 0
            if not (positive and (math.isfinite(value) or (infinite_is_none and value == math.inf))):
                raise LightVLAError(f"{name}: {key} is {value}, not a usable limit")


class Bounded(NamedTuple):
    """A command within limits, (channels,), and the kinds of limit that had to intervene."""

    command: NDArray[np.float64]
    interventions: tuple[Intervention, ...]


def bound(desired: NDArray[np.float64], base: NDArray[np.float64], limits: Limits, period: float) -> Bounded:
    """Bring a desired command (channels,) within all limits, relative to the command (or measured state) before it.

    A desired vector that is not finite gives the base again: clipping would let NaN pass. base must be finite and
    within one step of the position limits (see Limits.outside), or position and step limits contradict each other.
    """
    fastest = limits.max_velocity * period
    near = np.abs(desired - base) <= np.minimum(limits.max_step, fastest)
    if (near & (desired >= limits.lower) & (desired <= limits.upper)).all():
        return Bounded(desired.copy(), ())  # of nearly all commands: what follows takes five times as long
    if not np.isfinite(desired).all():
        return Bounded(np.clip(base, limits.lower, limits.upper), ("non_finite",))
    kinds: list[Intervention] = []
    target = np.clip(desired, limits.lower, limits.upper)
    if (target != desired).any():
        kinds.append("position")
    change = target - base
    by_step = np.clip(change, -limits.max_step, limits.max_step)
    if (np.abs(change) > limits.max_step + _ROUNDING).any():
        kinds.append("step")
    if (np.abs(by_step) > fastest + _ROUNDING).any():
        kinds.append("velocity")
    command = base + np.clip(by_step, -fastest, fastest)
    # Rounding of the sum may leave the limits by one unit in the last place.
    return Bounded(np.clip(command, limits.lower, limits.upper), tuple(kinds))


class SafetyGate:
    """Disarmed, armed or stopped; holds the last command and lets nothing through that breaks a limit.

    A stop latches its reason and one target, and stays until it is armed again.
    period: of the control loop, s; starvation_timeout: longest time without an executable step while armed, s
    """

    def __init__(self, limits: Limits, period: float, starvation_timeout: float) -> None:
        self.limits = limits
        self.period = self._interval = period
        self._step = limits.largest_step(period)
        self.set_times(period, starvation_timeout)
        self.state: State = "disarmed"
        self.reason = ""
        self.last: NDArray[np.float64] | None = None
        self.interventions: Counter[str] = Counter({kind: 0 for kind in INTERVENTIONS})
        self._fed = -math.inf

    def set_times(self, period: float, starvation_timeout: float) -> None:
        """The arguments of the constructor, changed between two commands."""
        for name, value in (("period", period), ("starvation_timeout", starvation_timeout)):
            if not (math.isfinite(value) and value > 0):
                raise LightVLAError(f"{name} should be a positive number of s, but is {value}")
        # The next command comes one old period after the last, and is to be reached within one new period.
        self._bound_by(min(self.period, period))
        self.period, self._starvation_timeout = period, starvation_timeout

    @property
    def target(self) -> NDArray[np.float64] | None:
        """The latched target, (channels,), where it is stopped; None too where nothing was ever commanded."""
        return self.last if self.state == "stopped" else None

    def arm(self, measured: NDArray[np.float64], now: Now) -> None:
        """Let commands through from now on; raises LightVLAError if the arm stands where no command could start."""
        if self.state == "armed":
            raise LightVLAError("already armed")
        sentence = self._unfit(measured)
        if sentence is not None:
            raise LightVLAError(f"cannot arm: {sentence}")
        self.state, self.reason, self.last, self._fed = "armed", "", None, now.steady
        self.interventions = Counter({kind: 0 for kind in INTERVENTIONS})
        self._bound_by(self.period)

    def disarm(self) -> None:
        self.state, self.reason, self.last = "disarmed", "", None

    def stop(self, reason: str, measured: NDArray[np.float64] | None = None) -> None:
        """Latch the reason and the target, if armed. measured: the state, where it is fresh.

        The target is the last command. The measured state takes its place where the step to it is allowed, so that an
        arm that lags behind stops where it is, but not where a gripper holds an object.
        """
        if self.state != "armed":
            return
        if self.last is not None:
            self.last = self._target(self.last, measured)
        self.state, self.reason = "stopped", reason

    def command(
        self, desired: NDArray[np.float64] | None, measured: NDArray[np.float64], now: Now
    ) -> NDArray[np.float64] | None:
        """The command of this period, (channels,), or None where nothing may be sent.

        desired: what the schedule wants, None for no executable step; measured: the fresh state, both (channels,)
        """
        if self.state == "armed":
            self._advance(desired, measured, now)
        self._bound_by(self.period)
        return None if self.state == "disarmed" else self.last

    def preview(self, desired: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What the first command would be if it were armed now; None where it could not be armed."""
        if self._unfit(measured) is not None or not np.isfinite(desired).all():
            return None
        return bound(desired, measured, self.limits, self.period).command

    def _bound_by(self, interval: float) -> None:
        """Bound the next command as one that comes, and is reached, within this time, s."""
        if interval != self._interval:
            self._interval, self._step = interval, self.limits.largest_step(interval)

    def _advance(self, desired: NDArray[np.float64] | None, measured: NDArray[np.float64], now: Now) -> None:
        sentence = self._tracking(measured)
        if sentence is not None:
            self.stop(sentence, measured)
        elif desired is not None:
            self._fed = now.steady
            self._follow(desired, measured)
        elif now.steady - self._fed > self._starvation_timeout:
            self.stop(f"starvation: no executable step for {self._starvation_timeout:g} s", measured)
        elif self.last is not None:
            self.last = np.where(self.limits.rates, 0.0, self.last)

    def _follow(self, desired: NDArray[np.float64], measured: NDArray[np.float64]) -> None:
        base = self.last
        if base is None:
            sentence = self._unfit(measured)
            if sentence is not None:
                self.stop(sentence)
                return
            base = measured
        bounded = bound(desired, base, self.limits, self._interval)
        for kind in bounded.interventions:
            self.interventions[kind] += 1
        if "non_finite" in bounded.interventions:
            self.stop("fault: the policy's command is not finite", measured)
            return
        self.last = bounded.command

    def _unfit(self, measured: NDArray[np.float64]) -> str | None:
        if not np.isfinite(measured).all():
            return f"the measured state of {self.limits.names[int(np.argmin(np.isfinite(measured)))]} is not finite"
        return self.limits.outside(measured, self._step)

    def _tracking(self, measured: NDArray[np.float64]) -> str | None:
        if not np.isfinite(measured).all():
            return self._unfit(measured)
        if self.last is None:
            return None
        beyond = np.abs(self.last - measured) > self.limits.max_tracking_error
        if not beyond.any():
            return None
        i = int(np.argmax(beyond))
        return (
            f"tracking error: {self.limits.names[i]} is commanded to {self.last[i]:.4f} and measured at "
            f"{measured[i]:.4f}, more than {self.limits.max_tracking_error[i]:g} apart"
        )

    def _target(self, last: NDArray[np.float64], measured: NDArray[np.float64] | None) -> NDArray[np.float64]:
        target = np.where(self.limits.rates, 0.0, last)
        if measured is None or not np.isfinite(measured).all() or self.limits.outside(measured, 0 * self._step):
            return target
        here = np.where(self.limits.grips | self.limits.rates, target, measured)
        return here if (np.abs(here - last) <= self._step).all() else target
