"""Chunk schedule: which chunks are taken, and what is commanded when."""

from __future__ import annotations

import math

import numpy as np
import pytest
from executor_fixtures import aloha_contract, chunk, delta_contract
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.contract import Gripper
from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import REASONS, ChunkError, ChunkSchedule, ExecutionMode, TimedChunk

CONTRACT = aloha_contract(chunk_length=5, control_rate=10.0)
RAMP = np.arange(5.0)[:, None] * np.ones(14)
STAMP = 1_795_000_000.3


def schedule_with(chunk_: TimedChunk, now: float, period: float = 0.1, blend_time: float = 0.0) -> ChunkSchedule:
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(period, blend_time))
    schedule.offer(chunk_, now)
    return schedule


def first_channel(schedule: ChunkSchedule, now: float) -> float | None:
    sample = schedule.sample(now, None)
    return None if sample is None else float(sample.values[0])


def test_action_i_is_sent_at_stamp_plus_i_steps() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP)
    for step in range(5):
        assert first_channel(schedule, STAMP + step * 0.1) == pytest.approx(step, abs=1e-5)


def test_nothing_is_executable_before_the_first_chunk_or_after_the_last_step() -> None:
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(0.1))
    assert schedule.sample(STAMP, None) is None
    schedule.offer(chunk(CONTRACT, RAMP, STAMP), STAMP)
    assert schedule.sample(STAMP + 0.499, None) is not None
    assert schedule.sample(STAMP + 0.5, None) is None


def test_late_steps_are_dropped_not_replayed() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP + 0.2)
    assert first_channel(schedule, STAMP + 0.2) == pytest.approx(2.0, abs=1e-5)
    assert schedule.steps_late == 2


def test_positions_are_interpolated_when_the_loop_is_faster_than_the_contract() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP, period=0.025)
    values = [first_channel(schedule, STAMP + 0.1 + k * 0.025) for k in range(5)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25], abs=1e-5)


def test_binary_gripper_is_never_interpolated_nor_blended() -> None:
    contract = aloha_contract(5, 10.0, gripper=Gripper(("left_gripper",), 1.0, 0.0, binary=True))
    schedule = ChunkSchedule(contract, ExecutionMode(0.01, blend_time=0.1))
    steps = np.zeros((5, 14))
    steps[2:, 6] = 1.0
    schedule.offer(chunk(contract, steps, STAMP), STAMP)
    standing, seen = np.full(14, 0.5), set()
    for k in range(49):
        sample = schedule.sample(STAMP + k * 0.01, standing)
        assert sample is not None
        seen.add(float(sample.values[6]))
    assert seen == {0.0, 1.0}


def test_deltas_become_a_velocity_held_for_the_step() -> None:
    contract = delta_contract()
    steps = np.array([[0.5, -1.0, 1.0], [0.1, 0.2, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    schedule = ChunkSchedule(contract, ExecutionMode(0.02))
    schedule.offer(chunk(contract, steps, STAMP), STAMP)
    for k in range(5):
        sample = schedule.sample(STAMP + k * 0.02, None)
        assert sample is not None
        np.testing.assert_allclose(sample.values, [5.0, -10.0, 1.0], rtol=1e-4)
    sample = schedule.sample(STAMP + 0.1, None)
    assert sample is not None
    np.testing.assert_allclose(sample.values, [1.0, 2.0, 1.0], rtol=1e-4)


def test_seam_starts_where_the_commands_stand_and_fades_within_blend_time() -> None:
    schedule = schedule_with(chunk(CONTRACT, np.zeros(14), STAMP), STAMP, period=0.01, blend_time=0.1)
    schedule.sample(STAMP, None)
    schedule.offer(chunk(CONTRACT, np.ones(14), STAMP + 0.1, 1), STAMP + 0.1)
    standing, values = np.zeros(14), []
    for k in range(12):
        sample = schedule.sample(STAMP + 0.1 + k * 0.01, standing)
        assert sample is not None
        standing = sample.values
        values.append(float(standing[0]))
    np.testing.assert_allclose(values[:10], np.linspace(0.1, 1.0, 10), atol=1e-5)
    np.testing.assert_allclose(values[10:], 1.0)


@pytest.mark.parametrize(
    ("reason", "changes", "delay"),
    [
        ("other_contract", {"contract_hash": "0" * 12}, 0.0),
        ("other_instruction", {"instruction_id": "f" * 12}, 0.0),
        ("future", {}, -0.2),
        ("expired", {}, 0.5),
    ],
)
def test_chunk_that_must_not_run_is_rejected_and_counted(reason: str, changes: dict[str, str], delay: float) -> None:
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(0.1), future_tolerance=0.05)
    schedule.set_instruction(chunk(CONTRACT, RAMP).instruction_id)
    with pytest.raises(ChunkError) as caught:
        schedule.offer(chunk(CONTRACT, RAMP, STAMP, **changes), STAMP + delay)
    assert caught.value.reason == reason
    assert {r: n for r, n in schedule.rejected.items() if n} == {reason: 1}
    assert schedule.sample(STAMP + delay, None) is None


def test_older_and_repeated_chunks_are_out_of_order() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP, 5), STAMP)
    for stamp, sequence in ((STAMP, 5), (STAMP, 4), (STAMP - 0.1, 4), (STAMP - 0.1, 6)):
        with pytest.raises(ChunkError, match="newer chunk"):
            schedule.offer(chunk(CONTRACT, RAMP, stamp, sequence), STAMP)
    assert schedule.rejected["out_of_order"] == 4


def test_restarted_policy_that_counts_from_zero_is_heard() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP, 500), STAMP)
    schedule.offer(chunk(CONTRACT, RAMP, STAMP + 0.1, 0), STAMP + 0.1)


def test_new_instruction_ends_the_old_chunk() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP)
    schedule.set_instruction("f" * 12)
    assert schedule.sample(STAMP, None) is None


@pytest.mark.parametrize(
    "bad", [{"blend_time": math.nan}, {"period": 0.0}, {"speed": 0.05}, {"speed": 1.5}, {"ensemble_decay": -1.0}]
)
def test_impossible_modes_are_refused_in_one_sentence(bad: dict[str, float]) -> None:
    with pytest.raises(LightVLAError, match=f"{next(iter(bad))} should be"):
        ExecutionMode(**{"period": 0.1, **bad})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_chunk_with_a_non_finite_number_cannot_exist(bad: float) -> None:
    steps = RAMP.copy()
    steps[3, 2] = bad
    with pytest.raises(ChunkError, match=r"step 3 of the chunk has (nan|inf) for left_elbow"):
        chunk(CONTRACT, steps)


@given(
    actions=st.lists(st.floats(-1e300, 1e300), min_size=5, max_size=5),
    offsets=st.lists(st.floats(-0.2, 0.7), min_size=1, max_size=20),
    period=st.floats(0.002, 0.2),
    blend_time=st.floats(0.0, 0.3),
)
def test_samples_lie_between_the_steps(
    actions: list[float], offsets: list[float], period: float, blend_time: float
) -> None:
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(period, blend_time))
    steps = np.array(actions)[:, None] * np.ones(14)
    schedule.offer(chunk(CONTRACT, steps, STAMP), STAMP)
    for offset in sorted(offsets):
        sample = schedule.sample(STAMP + offset, None)
        if sample is not None:
            tolerance = 1e-12 * max(map(abs, actions))
            assert min(actions) - tolerance <= sample.values[0] <= max(actions) + tolerance


def ensembled(decay: float, *levels: float) -> ChunkSchedule:
    """Chunks of constant level, each stamped one step after the one before."""
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(0.1, ensemble_decay=decay))
    for k, level in enumerate(levels):
        stamp = STAMP + 0.1 * k
        schedule.offer(chunk(CONTRACT, np.full(14, level), stamp, k), stamp)
    return schedule


def test_ensembling_averages_overlapping_chunks_with_exponential_weights_the_oldest_first() -> None:
    schedule = ensembled(0.5, 1.0, 2.0, 4.0)
    weights = np.exp(-0.5 * np.arange(3))
    expected = weights @ [1.0, 2.0, 4.0] / weights.sum()
    assert first_channel(schedule, STAMP + 0.2) == pytest.approx(expected)


def test_ensembling_forgets_chunks_that_plan_the_moment_no_more() -> None:
    schedule = ensembled(0.0, 1.0, 3.0)
    assert first_channel(schedule, STAMP + 0.45) == pytest.approx(2.0)
    assert first_channel(schedule, STAMP + 0.55) == pytest.approx(3.0)
    assert first_channel(schedule, STAMP + 0.65) is None


def test_ensembling_never_averages_a_binary_gripper() -> None:
    contract = aloha_contract(5, 10.0, gripper=Gripper(("left_gripper",), 1.0, 0.0, binary=True))
    schedule = ChunkSchedule(contract, ExecutionMode(0.1, ensemble_decay=0.01))
    for k, level in enumerate((0.0, 1.0)):
        schedule.offer(chunk(contract, np.full(14, level), STAMP + 0.1 * k, k), STAMP + 0.1 * k)
    sample = schedule.sample(STAMP + 0.1, None)
    assert sample is not None
    assert (sample.values[6], 0.0 < sample.values[0] < 1.0) == (1.0, True)


def test_switching_to_the_newest_chunk_ends_the_averaging() -> None:
    schedule = ensembled(0.0, 1.0, 3.0)
    schedule.change_mode(ExecutionMode(0.1), STAMP + 0.2)
    assert first_channel(schedule, STAMP + 0.2) == pytest.approx(3.0)


def test_half_speed_takes_twice_as_long_for_every_step() -> None:
    schedule = ChunkSchedule(CONTRACT, ExecutionMode(0.1, speed=0.5))
    schedule.offer(chunk(CONTRACT, RAMP, STAMP), STAMP)
    values = [first_channel(schedule, STAMP + k * 0.2) for k in range(5)]
    assert values == pytest.approx([0.0, 0.5, 1.5, 2.5, 3.5], abs=1e-5)
    assert first_channel(schedule, STAMP + 0.99) is not None
    assert first_channel(schedule, STAMP + 1.0) is None


@given(rate=st.floats(3.0, 200.0), speed=st.sampled_from((1.0, 0.5)))
def test_deltas_add_up_at_any_control_rate(rate: float, speed: float) -> None:
    contract = delta_contract()
    steps = np.array([[1.0, 0.3, 1.0], [0.0, -0.2, 1.0], [1.0, 0.1, 0.0], [0.5, 0.0, 0.0]])
    schedule = ChunkSchedule(contract, ExecutionMode(1.0 / rate, speed=speed))
    schedule.offer(chunk(contract, steps, STAMP), STAMP)
    travelled, k = np.zeros(2), 0
    while (sample := schedule.sample(STAMP + k / rate, None)) is not None:
        travelled += sample.values[:2] / rate
        k += 1
    np.testing.assert_allclose(travelled, steps[:, :2].sum(axis=0), atol=1e-3)


def test_half_speed_halves_a_velocity() -> None:
    contract = delta_contract()
    schedule = ChunkSchedule(contract, ExecutionMode(0.02, speed=0.5))
    schedule.offer(chunk(contract, np.array([0.5, -1.0, 1.0]), STAMP), STAMP)
    sample = schedule.sample(STAMP, None)
    assert sample is not None
    np.testing.assert_allclose(sample.values, [2.5, -5.0, 1.0], rtol=1e-4)


def test_speed_changed_within_a_chunk_goes_on_from_the_step_it_was_at() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP, period=0.01)
    before = first_channel(schedule, STAMP + 0.2)
    schedule.change_mode(ExecutionMode(0.01, speed=0.1), STAMP + 0.2)
    after = first_channel(schedule, STAMP + 0.2)
    assert before is not None
    assert after == pytest.approx(before, abs=0.1)
    assert first_channel(schedule, STAMP + 0.2 + 1.0) == pytest.approx(after + 1.0, abs=1e-4)


def test_old_instruction_ends_with_the_step_under_way() -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP, period=0.025)
    assert first_channel(schedule, STAMP + 0.025) is not None
    schedule.set_instruction("f" * 12)
    assert first_channel(schedule, STAMP + 0.075) is not None
    assert first_channel(schedule, STAMP + 0.1) is None


@pytest.mark.parametrize(("now", "boundary"), [(0.05, False), (0.0999, False), (0.1, True), (0.6, True)])
def test_step_boundary_is_where_another_step_begins(now: float, boundary: bool) -> None:
    schedule = schedule_with(chunk(CONTRACT, RAMP, STAMP), STAMP, period=0.01)
    assert schedule.at_step_boundary(STAMP)
    schedule.sample(STAMP + 0.01, None)
    assert schedule.at_step_boundary(STAMP + now) is boundary


def test_every_reason_is_counted_from_zero() -> None:
    assert ChunkSchedule(CONTRACT, ExecutionMode(0.1)).rejected == dict.fromkeys(REASONS, 0)
