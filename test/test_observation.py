"""Gathering: an observation only of fresh inputs, and one sentence otherwise."""

from __future__ import annotations

import array
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_core.interface import Observation
from lightvla_ros.observation import (
    EdgeLog,
    Limits,
    NotReady,
    ObservationGatherer,
    Reason,
    Snapshot,
    Stream,
    finite_values,
    to_observation,
)

HIGH = Stream("cam_high", "/cam_high/image", "camera")
WRIST = Stream("cam_wrist", "/cam_wrist/image", "camera")
LEFT = Stream("left", "/left/joint_states", "joint state")
RIGHT = Stream("right", "/right/joint_states", "joint state")
STREAMS = (HIGH, WRIST, LEFT, RIGHT)
LIMITS = Limits(max_age=0.3, max_skew=0.1)
# The two clocks have nothing to do with each other.
ROS, STEADY = 1.7e9, 50.0


def gatherer(stamps: Mapping[Stream, float], received: float = STEADY) -> ObservationGatherer:
    made = ObservationGatherer(STREAMS, LIMITS)
    for stream, stamp in stamps.items():
        made.put(stream.name, f"message of {stream.name}", stamp, received)
    return made


def all_at(stamp: float, **others: float) -> dict[Stream, float]:
    return {stream: others.get(stream.name, stamp) for stream in STREAMS}


def observe(snapshot: Snapshot, instruction: str) -> Observation:
    return to_observation(snapshot, STREAMS, _proprioception, instruction, decode=lambda message: message)


def refused(result: Snapshot | NotReady) -> NotReady:
    assert isinstance(result, NotReady), result
    return result


def given_snapshot(result: Snapshot | NotReady) -> Snapshot:
    assert isinstance(result, Snapshot), result
    return result


def test_fresh_inputs_make_a_snapshot_of_every_stream() -> None:
    snapshot = given_snapshot(gatherer(all_at(ROS)).gather(ROS + 0.02, STEADY + 0.02))
    assert set(snapshot.messages) == {"cam_high", "cam_wrist", "left", "right"}
    assert snapshot.stamp == ROS
    assert snapshot.skew == 0.0


def test_observation_stands_for_the_oldest_joint_state_and_not_for_an_older_image() -> None:
    made = gatherer({HIGH: ROS, WRIST: ROS + 0.01, LEFT: ROS + 0.03, RIGHT: ROS + 0.04})
    snapshot = given_snapshot(made.gather(ROS + 0.05, STEADY))
    assert snapshot.stamp == ROS + 0.03
    assert snapshot.images == {"cam_high": ROS, "cam_wrist": ROS + 0.01}
    assert snapshot.skew == pytest.approx(0.04, abs=1e-6)


def test_without_joint_states_the_oldest_image_is_the_reference() -> None:
    made = ObservationGatherer((HIGH, WRIST), LIMITS)
    made.put("cam_high", "", ROS + 0.02, STEADY)
    made.put("cam_wrist", "", ROS, STEADY)
    assert given_snapshot(made.gather(ROS + 0.03, STEADY)).stamp == ROS


@pytest.mark.parametrize("absent", STREAMS, ids=lambda s: s.name)
def test_missing_stream_is_missing_and_never_zero(absent: Stream) -> None:
    made = gatherer({stream: ROS for stream in STREAMS if stream is not absent})
    fault = refused(made.gather(ROS, STEADY))
    assert (fault.reason, fault.stream) == (Reason.MISSING, absent.name)
    assert absent.name in fault.sentence
    assert absent.topic in fault.sentence


def test_all_missing_streams_are_named_in_one_sentence() -> None:
    fault = refused(gatherer({LEFT: ROS, RIGHT: ROS}).gather(ROS, STEADY))
    assert HIGH.topic in fault.sentence
    assert WRIST.topic in fault.sentence


@pytest.mark.parametrize("stale", STREAMS, ids=lambda s: s.name)
def test_stream_older_than_max_age_by_its_header_stamp_is_refused(stale: Stream) -> None:
    made = gatherer(all_at(ROS, **{stale.name: ROS - 0.31}))
    fault = refused(made.gather(ROS, STEADY))
    assert (fault.reason, fault.stream) == (Reason.STALE, stale.name)
    assert "0.310 s old by its stamp and came 0.000 s ago" in fault.sentence


def test_stream_that_fell_silent_is_refused_although_the_ros_clock_runs_slow() -> None:
    made = gatherer(all_at(ROS))
    fault = refused(made.gather(ROS + 0.05, STEADY + 0.31))
    assert fault.reason is Reason.STALE
    assert "0.050 s old by its stamp and came 0.310 s ago" in fault.sentence


def test_inputs_further_apart_than_max_skew_are_refused() -> None:
    fault = refused(gatherer(all_at(ROS, cam_wrist=ROS - 0.11)).gather(ROS, STEADY))
    assert (fault.reason, fault.stream) == (Reason.SKEWED, "cam_wrist")


def test_stamp_in_the_future_says_that_clocks_are_not_synchronised() -> None:
    fault = refused(gatherer(all_at(ROS, cam_high=ROS + 0.06)).gather(ROS, STEADY))
    assert (fault.reason, fault.stream) == (Reason.FUTURE, "cam_high")
    assert "synchronise the clocks" in fault.sentence


def test_stamp_slightly_ahead_of_a_stepping_clock_is_accepted() -> None:
    given_snapshot(gatherer(all_at(ROS + 0.04)).gather(ROS, STEADY))


def test_stamp_that_is_no_number_is_refused() -> None:
    refused(gatherer(all_at(ROS, left=float("nan"))).gather(ROS, STEADY))


def test_clock_that_jumps_back_drops_everything_of_the_old_time() -> None:
    made = gatherer(all_at(ROS))
    given_snapshot(made.gather(ROS, STEADY))
    assert refused(made.gather(ROS - 10.0, STEADY)).reason is Reason.CLOCK_JUMPED_BACK
    assert refused(made.gather(ROS - 9.99, STEADY)).reason is Reason.MISSING
    for stream in STREAMS:
        made.put(stream.name, "", ROS - 9.98, STEADY)
    given_snapshot(made.gather(ROS - 9.98, STEADY))


def test_frozen_clock_is_refused_although_messages_keep_coming() -> None:
    made = ObservationGatherer(STREAMS, LIMITS)
    results = []
    for tick in range(8):
        steady = STEADY + 0.05 * tick
        for stream in STREAMS:
            made.put(stream.name, "", ROS, steady)
        results.append(made.gather(ROS, steady))
    given_snapshot(results[5])
    assert refused(results[7]).reason is Reason.CLOCK_FROZEN
    given_snapshot(made.gather(ROS + 0.01, STEADY + 0.36))


def test_clock_at_zero_asks_for_clock_messages() -> None:
    made = ObservationGatherer(STREAMS, LIMITS)
    refused(made.gather(0.0, STEADY))
    assert "/clock" in refused(made.gather(0.0, STEADY + 1.0)).sentence


@given(
    stamps=st.lists(st.floats(-1.0, 0.3), min_size=4, max_size=4),
    silences=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
)
def test_whatever_is_given_out_keeps_every_limit(stamps: list[float], silences: list[float]) -> None:
    now = 1000.0
    made = ObservationGatherer(STREAMS, LIMITS)
    for stream, stamp, silence in zip(STREAMS, stamps, silences, strict=True):
        made.put(stream.name, "", now + stamp, STEADY - silence)
    keeps = (
        all(-LIMITS.max_age <= (now + s) - now <= LIMITS.future_tolerance for s in stamps)
        and all(STEADY - (STEADY - s) <= LIMITS.max_age for s in silences)
        and max(now + s for s in stamps) - min(now + s for s in stamps) <= LIMITS.max_skew
    )
    assert isinstance(made.gather(now, STEADY), Snapshot) == keeps


@pytest.mark.parametrize("name", ["max_age", "max_skew"])
def test_limit_that_is_not_positive_is_refused(name: str) -> None:
    with pytest.raises(LightVLAError, match=name):
        Limits(**{"max_age": 0.1, "max_skew": 0.1, name: 0.0})


def _image(value: int, encoding: str = "rgb8") -> Any:
    data = array.array("B", bytes([value] * 12))
    return SimpleNamespace(height=2, width=2, encoding=encoding, step=6, is_bigendian=0, data=data)


def _state(**positions: float) -> Any:
    return SimpleNamespace(name=list(positions), position=array.array("d", positions.values()))


def _proprioception(states: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([states["left"]["waist"], states["left"]["elbow"], states["right"]["waist"]])


def _snapshot(high: Any, left: Any) -> Snapshot:
    messages = {"cam_high": high, "cam_wrist": _image(7), "left": left, "right": _state(waist=3.0)}
    return Snapshot(messages=messages, stamp=ROS, images={"cam_high": ROS, "cam_wrist": ROS}, skew=0.0, received=STEADY)


def test_observation_carries_decoded_images_proprioception_instruction_and_stamp() -> None:
    snapshot = _snapshot(_image(9), _state(elbow=2.0, waist=1.0))
    observation = observe(snapshot, "pick up the cube")
    assert (observation.images["cam_high"] == 9).all()
    assert (observation.images["cam_wrist"] == 7).all()
    np.testing.assert_array_equal(observation.proprio, [1.0, 2.0, 3.0])
    assert observation.instruction == "pick up the cube"
    assert observation.stamp == ROS


def test_unknown_encoding_names_camera_and_topic() -> None:
    with pytest.raises(LightVLAError, match=r"camera cam_high \(/cam_high/image\).*'32FC1'"):
        observe(_snapshot(_image(9, "32FC1"), _state(waist=0.0, elbow=0.0)), "")


def test_bytes_that_are_no_message_name_their_stream() -> None:
    def decode(data: Any) -> Any:
        raise LightVLAError("3 bytes are no Image")

    snapshot = Snapshot({stream.name: b"..." for stream in STREAMS}, ROS, {}, 0.0, STEADY)
    with pytest.raises(LightVLAError, match=r"camera cam_high \(/cam_high/image\) cannot be decoded: 3 bytes"):
        to_observation(snapshot, STREAMS, _proprioception, "go", decode)


def test_joint_state_that_is_not_finite_is_refused() -> None:
    with pytest.raises(LightVLAError, match=r"/left/joint_states.*elbow.*not a finite number"):
        finite_values(_state(waist=0.0, elbow=float("nan")), str(LEFT))


def test_joint_state_with_fewer_positions_than_names_is_refused() -> None:
    with pytest.raises(LightVLAError, match=r"/left/joint_states.*2 joint names with 1 positions"):
        finite_values(SimpleNamespace(name=["waist", "elbow"], position=[0.0]), str(LEFT))


STALE = NotReady(Reason.STALE, "cam_high", "camera cam_high is stale")
MISSING = NotReady(Reason.MISSING, "cam_high", "nothing has come yet from camera cam_high")


def test_a_lasting_fault_is_said_once_and_its_end_once() -> None:
    log = EdgeLog({Reason.MISSING: 2.0})
    told = [log.update(fault, now) for now, fault in enumerate([None, STALE, STALE, STALE, None, None])]
    assert told == [None, "no inference: camera cam_high is stale", None, None, told[4], None]
    assert "fresh again" in str(told[4])


def test_missing_camera_is_said_after_a_grace() -> None:
    log = EdgeLog({Reason.MISSING: 2.0})
    assert [log.update(MISSING, 0.5 * i) is not None for i in range(7)] == [False] * 4 + [True, False, False]


def test_camera_that_comes_within_the_grace_is_not_mentioned() -> None:
    log = EdgeLog({Reason.MISSING: 2.0})
    assert [log.update(fault, 0.5 * i) for i, fault in enumerate([MISSING, MISSING, None, None])] == [None] * 4


def test_another_fault_is_another_sentence() -> None:
    log = EdgeLog({Reason.MISSING: 2.0})
    wrist = NotReady(Reason.STALE, "cam_wrist", "camera cam_wrist is stale")
    assert [log.update(fault, 0.0) for fault in (STALE, wrist, STALE)] == [
        "no inference: camera cam_high is stale",
        "no inference: camera cam_wrist is stale",
        "no inference: camera cam_high is stale",
    ]


def test_stream_that_falls_silent_is_said_to_be_stale_and_not_skewed_before() -> None:
    log = EdgeLog({Reason.SKEWED: 0.3})
    skewed = NotReady(Reason.SKEWED, "cam_high", "camera cam_high is skewed")
    assert [log.update(fault, 0.1 * i) for i, fault in enumerate([None, skewed, skewed, STALE])] == [
        None,
        None,
        None,
        "no inference: camera cam_high is stale",
    ]


def test_messages_of_every_stream_are_counted_and_image_stamps_known_once_every_camera_has_sent() -> None:
    made = gatherer({HIGH: ROS, LEFT: ROS})
    assert made.image_stamps() == []
    made.put("cam_high", "image", ROS + 0.1, STEADY)
    made.put("cam_wrist", "image", ROS + 0.05, STEADY)
    assert made.image_stamps() == [ROS + 0.1, ROS + 0.05]
    assert made.received() == {"cam_high": 2, "cam_wrist": 1, "left": 1, "right": 0}


def test_snapshot_tells_when_its_newest_message_came() -> None:
    made = gatherer(all_at(ROS))
    made.put("left", "message", ROS, STEADY + 0.05)
    assert given_snapshot(made.gather(ROS, STEADY + 0.06)).received == STEADY + 0.05
