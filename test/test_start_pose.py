"""The slow move to the start pose."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightvla_ros.robots.start_pose import SPEED, StartMove

poses = arrays(np.float64, 3, elements=st.floats(-3.0, 3.0))
FAST = np.array([3.14, 0.4, np.inf])


PERIOD = 0.02


@given(start=poses, goal=poses)
def test_it_starts_where_the_arm_is_ends_at_the_goal_and_is_never_fast(start: np.ndarray, goal: np.ndarray) -> None:
    move = StartMove(start, goal, FAST, began=0.0)
    times = np.linspace(0.0, move.duration, 200)
    path = np.array([move.advance(t, period=move.duration) for t in times])
    np.testing.assert_allclose(path[-1], goal, atol=1e-9)
    if move.duration > 1e-6:
        np.testing.assert_allclose(path[0], start, atol=1e-9)
        speed = np.abs(np.diff(path, axis=0)) * 199 / move.duration
        assert (speed <= np.minimum(SPEED, 0.25 * FAST) + 1e-6).all()


def test_it_is_done_at_its_end_and_not_before() -> None:
    move = StartMove(np.zeros(3), np.ones(3), FAST, began=0.0)
    for tick in range(round(0.99 * move.duration / PERIOD)):
        move.advance(tick * PERIOD, PERIOD)
        assert not move.done
    move.advance(move.duration, move.duration)
    assert move.done


def test_after_a_stall_it_goes_on_where_it_was() -> None:
    move = StartMove(np.zeros(3), np.ones(3), FAST, began=0.0)
    before = [move.advance(tick * PERIOD, PERIOD) for tick in range(100)]
    after = [move.advance(1.98 + 1.5 + tick * PERIOD, PERIOD) for tick in range(10)]
    fastest = 2 * PERIOD * np.minimum(SPEED, 0.25 * FAST)
    assert (np.abs(np.diff([before[-1], *after], axis=0)) <= fastest + 1e-9).all()


def test_an_arm_that_is_there_is_done_at_once() -> None:
    move = StartMove(np.ones(3), np.ones(3), FAST, began=0.0)
    assert move.done
    np.testing.assert_array_equal(move.advance(0.0, PERIOD), np.ones(3))
