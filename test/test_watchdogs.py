"""Ages of joint states, the ROS clock, the operator's heartbeat."""

from __future__ import annotations

import math

from lightvla_ros.safety import Now
from lightvla_ros.watchdogs import ClockWatch, HeartbeatWatch, StateWatch


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, seconds)


def test_state_watch_needs_both_ages_fresh() -> None:
    watch = StateWatch(("left", "right"), timeout=0.2, future_tolerance=0.05)
    assert watch.stale(at(0.0)) == "no joint state from left yet"
    watch.feed("left", 1000.0, 0.0)
    watch.feed("right", 1000.0, 0.0)
    assert watch.stale(at(0.1)) is None
    assert "for more than 0.2 s" in (watch.stale(Now(1000.1, 0.3)) or "")
    assert "stamped 0.300 s ago" in (watch.stale(Now(1000.3, 0.1)) or "")
    assert "in the future" in (watch.stale(Now(999.9, 0.1)) or "")


def test_clock_that_goes_back_leaps_or_freezes_is_noticed() -> None:
    watch = ClockWatch(frozen_after=0.2, max_leap=0.5)
    assert [watch.check(at(k / 10)) for k in range(5)] == [None] * 5
    assert "went back by 5.000" in (watch.check(Now(995.4, 0.5)) or "")
    assert watch.check(Now(995.5, 0.6)) is None
    assert "leapt ahead by 9.900" in (watch.check(Now(1005.5, 0.7)) or "")
    assert watch.check(Now(1005.5, 0.8)) is None
    assert "has stood still" in (watch.check(Now(1005.5, 1.0)) or "")


def test_simulated_clock_that_runs_slowly_is_no_trouble() -> None:
    watch = ClockWatch(frozen_after=0.2, max_leap=0.5)
    assert all(watch.check(Now(k * 0.03, k * 0.1)) is None for k in range(50))


def test_joint_state_with_a_stamp_that_is_no_number_is_not_fresh() -> None:
    watch = StateWatch(("left",), timeout=0.2, future_tolerance=0.05)
    watch.feed("left", math.nan, 0.0)
    assert watch.stale(at(0.0)) is not None


def test_heartbeat_is_missed_after_its_timeout_and_only_where_required() -> None:
    watch = HeartbeatWatch(0.5)
    assert "no heartbeat" in (watch.silent(at(0.0)) or "")
    watch.feed(0.0)
    assert watch.silent(at(0.5)) is None
    assert watch.silent(at(0.51)) is not None
    watch.timeout = None
    assert watch.silent(at(9.0)) is None
