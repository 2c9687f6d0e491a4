"""A contract that contradicts itself cannot exist, and a damaged file is answered with one sentence."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.contract import Camera, Channel, EndEffector, PolicyContract, Pruning
from lightvla_core.errors import LightVLAError
from lightvla_core.presets import aloha_contract

CONTRACT = aloha_contract((Camera("cam_high", 112, 112), Camera("cam_left_wrist", 112, 112, rotate=180)))


def changed(**fields):
    return dataclasses.replace(CONTRACT, **fields)


def test_json_round_trip_keeps_everything():
    libero = changed(
        action_space="eef_delta",
        end_effector=EndEffector(0.05, 0.5),
        gripper=None,
        cameras=(Camera("front", jpeg_quality=95, resize="lanczos3", crop_area=0.9),),
    )
    for contract in (CONTRACT, libero):
        assert PolicyContract.from_json(contract.to_json()) == contract


@given(rate=st.floats(0.1, 1000), length=st.integers(1, 100), keep=st.booleans())
def test_hash_changes_with_any_field(rate, length, keep):
    other = changed(control_rate=rate, chunk_length=length, pruning=Pruning(enabled=keep))
    assert (other.hash == CONTRACT.hash) == (other == CONTRACT)
    assert PolicyContract.from_json(other.to_json()).hash == other.hash


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cameras": ()}, "lists no camera"),
        ({"actions": ()}, "lists no action"),
        ({"cameras": (Camera("a"), Camera("a"))}, "camera name a stands more than once"),
        ({"chunk_length": 0}, "chunk_length is 0"),
        ({"control_rate": float("nan")}, "control_rate is nan"),
        ({"control_rate": 0.0}, "control_rate is 0.0"),
        ({"prompt_template": "Go!"}, "lacks the field {instruction}"),
        ({"prompt_template": "{instruction} with {arm}"}, "braces other than those of {instruction}"),
        ({"prompt_template": "{instruction}{"}, "braces other than those of {instruction}"),
        ({"action_space": "eef_delta"}, "do not go together"),
        ({"actions": (Channel("x", "rad"),)}, "gripper channel left_gripper, right_gripper is not an action"),
        ({"attention": "causal"}, "causal attention and pruning"),
        ({"attention": "causal", "pruning": Pruning(enabled=False)}, "causal attention goes with the discrete"),
    ],
)
def test_contradictions_are_refused(fields, sentence):
    with pytest.raises(LightVLAError, match=sentence):
        changed(**fields)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("cameras"), "lacks the field cameras"),
        (lambda d: d.update(colour="red"), "unknown field colour"),
        (lambda d: d.update(chunk_length="25"), "chunk_length should be of type int"),
        (lambda d: d.update(chunk_length=True), "chunk_length should be of type int"),
        (lambda d: d.update(action_head="l3"), "action_head should be one of l1, diffusion, discrete"),
        (lambda d: d.update(cameras={}), "cameras should be a list"),
        (lambda d: d["cameras"][0].update(rotate=45), "rotated by 45 degrees"),
        (lambda d: d["cameras"][0].update(jpeg_quality=0), "jpeg_quality 0"),
        (lambda d: d["cameras"][0].update(crop_area=0.0), "crop_area 0.0"),
    ],
)
def test_a_damaged_file_is_answered_with_one_sentence(change, sentence):
    data = json.loads(CONTRACT.to_json())
    change(data)
    with pytest.raises(LightVLAError, match=sentence) as error:
        PolicyContract.from_json(json.dumps(data), "contract.json")
    assert str(error.value).startswith("contract.json")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "contract.json").write_bytes(b"\xff\xfe")
    with pytest.raises(LightVLAError, match=r"contract\.json is not text in UTF-8"):
        PolicyContract.from_file(tmp_path / "contract.json")


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(LightVLAError, match="lightvla import"):
        PolicyContract.from_file(tmp_path / "contract.json")
