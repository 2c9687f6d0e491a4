"""Chunk messages: what travels, and every malformation answered by one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from executor_fixtures import aloha_contract, chunk
from hypothesis import given
from hypothesis import strategies as st

from lightvla_ros.chunk_message import from_message, instruction_id, to_message
from lightvla_ros.chunk_schedule import ChunkError

CONTRACT = aloha_contract()
STEPS = np.linspace(-1.0, 1.0, 25 * 14).reshape(25, 14)


def message() -> Any:
    return to_message(chunk(CONTRACT, STEPS, stamp=1_795_000_000.25, sequence=7))


def test_chunk_survives_the_message() -> None:
    read = from_message(message(), CONTRACT)
    np.testing.assert_array_equal(read.actions, STEPS)
    assert (read.stamp, read.sequence, read.names) == (1_795_000_000.25, 7, CONTRACT.action_names)
    assert (read.instruction_id, read.contract_hash) == (instruction_id("pick up the cube"), CONTRACT.hash)


def test_step_i_stands_at_i_plus_one_steps_after_the_stamp() -> None:
    times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message().points]
    np.testing.assert_allclose(times, np.arange(1, 26) * 0.04)


@given(rate=st.floats(1.0, 200.0), stamp=st.floats(0.0, 2e9), steps=st.integers(1, 60), sequence=st.integers(0, 2**53))
def test_any_rate_stamp_and_length_survives(rate: float, stamp: float, steps: int, sequence: int) -> None:
    contract = aloha_contract(steps, rate)
    read = from_message(to_message(chunk(contract, np.zeros(14), stamp, sequence)), contract)
    assert read.stamp == pytest.approx(stamp, abs=1e-6)
    assert (read.sequence, read.dt, len(read.actions)) == (sequence, contract.period, steps)


def swap_joints(m: Any) -> None:
    names = list(m.joint_names)
    m.joint_names = [names[1], names[0], *names[2:]]


def rename_joint(m: Any) -> None:
    m.joint_names = ["eef_x", *list(m.joint_names)[1:]]


def shorten_step(m: Any) -> None:
    m.points[3].positions = list(m.points[3].positions)[:13]


def put_nan(m: Any) -> None:
    m.points[3].positions[2] = float("nan")


def repeat_time(m: Any) -> None:
    m.points[4].time_from_start = m.points[3].time_from_start


def halve_rate(m: Any) -> None:
    m.points[0].time_from_start.nanosec = 80_000_000
    for i, point in enumerate(m.points):
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(80_000_000 * (i + 1), 1_000_000_000)


def drop_step(m: Any) -> None:
    m.points = m.points[:-1]


def clear_points(m: Any) -> None:
    m.points = []


def clear_frame(m: Any) -> None:
    m.header.frame_id = "base_link"


def negative_sequence(m: Any) -> None:
    m.header.frame_id = m.header.frame_id.rsplit(":", 1)[0] + ":-1"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (swap_joints, "in the order left_shoulder, left_waist"),
        (rename_joint, "for the joints eef_x"),
        (shorten_step, "step 3 of a chunk has 13 positions, expected 14"),
        (put_nan, "step 3 of the chunk has nan for left_elbow"),
        (repeat_time, "step 4 of a chunk is at .* not after step 3"),
        (halve_rate, "expected 0.040000 s at the contract's 25 Hz"),
        (drop_step, "has 24 steps, the contract's have 25"),
        (clear_points, "has 0 steps"),
        (clear_frame, "frame_id 'base_link', expected"),
        (negative_sequence, "frame_id"),
    ],
)
def test_malformed_message_is_refused_in_one_sentence(spoil: Any, sentence: str) -> None:
    spoiled = message()
    spoil(spoiled)
    with pytest.raises(ChunkError, match=sentence) as caught:
        from_message(spoiled, CONTRACT)
    assert caught.value.reason == "malformed"


def test_chunk_of_another_contract_is_refused_as_such() -> None:
    with pytest.raises(ChunkError, match="of contract") as caught:
        from_message(message(), aloha_contract(prompt_template="{instruction}"))
    assert caught.value.reason == "other_contract"


def test_space_around_an_instruction_does_not_change_its_id() -> None:
    assert instruction_id(" open the drawer\n") == instruction_id("open the drawer")
    assert instruction_id("open the drawer") != instruction_id("close the drawer")
