"""The slow move to the start pose."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightvla_ros.robots.start_pose import SPEED, StartMove

poses = arrays(np.float64, 3, elements=st.floats(-3.0, 3.0))
FAST = np.array([3.14, 0.4, np.inf])


@given(start=poses, goal=poses)
def test_it_starts_where_the_arm_is_ends_at_the_goal_and_is_never_fast(start: np.ndarray, goal: np.ndarray) -> None:
    move = StartMove(start, goal, FAST, began=10.0)
    path = np.array([move.at(10.0 + t) for t in np.linspace(0.0, move.duration, 200)])
    np.testing.assert_allclose(path[-1], goal, atol=1e-9)
    if move.duration > 0:
        np.testing.assert_allclose(path[0], start, atol=1e-9)
        speed = np.abs(np.diff(path, axis=0)) * 199 / move.duration
        assert (speed <= np.minimum(SPEED, 0.25 * FAST) + 1e-6).all()
        assert not move.done(10.0 + 0.99 * move.duration)
    assert move.done(10.0 + move.duration + 1e-9)


def test_an_arm_that_is_there_is_done_at_once() -> None:
    move = StartMove(np.ones(3), np.ones(3), FAST, began=0.0)
    assert move.done(0.0)
    np.testing.assert_array_equal(move.at(0.0), np.ones(3))
