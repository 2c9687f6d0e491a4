"""Robot descriptions: read, checked, compared with a contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from executor_fixtures import aloha_contract, delta_contract, robot

from lightvla_core.contract import Channel, Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.resources import resource
from lightvla_ros.robots.description import check_contract
from lightvla_ros.robots.description_file import load_robot


def test_aloha_has_fourteen_channels_left_arm_first() -> None:
    assert robot().names[:7] == (
        "left_waist", "left_shoulder", "left_elbow", "left_forearm_roll", "left_wrist_angle", "left_wrist_rotate",
        "left_gripper",
    )  # fmt: skip
    assert robot().names[7:] == tuple(n.replace("left", "right") for n in robot().names[:7])
    assert robot().joint_state_topics == {
        "follower_left": "follower_left/joint_states",
        "follower_right": "follower_right/joint_states",
    }


@pytest.mark.parametrize(("variant", "ends"), [("aloha1", (-0.6213, 1.4910)), ("trossen", (0.6197, 1.6214))])
def test_gripper_variants_reach_the_published_motor_angles(variant: str, ends: tuple[float, float]) -> None:
    gripper = load_robot("aloha", variant).select(("right_gripper",))[0].gripper
    assert gripper is not None
    assert (gripper.motor(0.0), gripper.motor(1.0)) == pytest.approx(ends)
    np.testing.assert_allclose([gripper.opening(gripper.finger_closed), gripper.opening(gripper.finger_open)], [0, 1])


def test_matching_contract_is_accepted_in_any_order() -> None:
    contract = aloha_contract()
    check_contract(contract, robot())
    check_contract(aloha_contract(actions=contract.actions[::-1]), robot())


@pytest.mark.parametrize(
    ("contract", "sentence"),
    [
        (aloha_contract(robot="libero"), "trained for robot libero, but this robot is aloha"),
        (delta_contract(), "trained for robot franka"),
        (aloha_contract(actions=aloha_contract().actions[:13], gripper=None), "13 actions and none for right_gripper"),
        (
            aloha_contract(actions=(*aloha_contract().actions, Channel("base_x", "m"))),
            "no channel base_x; it has left_waist",
        ),
        (
            aloha_contract(actions=(Channel("left_waist", "m"), *aloha_contract().actions[1:])),
            "action left_waist is in m, but robot aloha takes it in rad",
        ),
        (aloha_contract(gripper=Gripper(("left_gripper",), open=0.0, closed=1.0)), "0 closed, 1 open"),
        (aloha_contract(proprioception=(Channel("head", "rad"),)), "no channel head"),
    ],
)
def test_mismatch_with_the_contract_is_one_sentence(contract: PolicyContract, sentence: str) -> None:
    with pytest.raises(LightVLAError, match=sentence):
        check_contract(contract, robot())


def written(folder: Path, **changes: Any) -> str:
    data = yaml.safe_load(resource("config/robots/aloha.yaml").read_text()) | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cameras": None}, "lacks the key cameras"),
        ({"speed": 3}, "unknown key speed"),
        ({"start_pose": [0.0]}, "start_pose has 1 numbers for 6 joints"),
        ({"start_pose": [9.0, 0, 0, 0, 0, 0]}, "left_waist: the start pose 9.0 is outside"),
        ({"start_pose": ["a", 0, 0, 0, 0, 0]}, "could not convert"),
        ({"arms": [{"prefix": "a"}]}, "an arm lacks the key namespace"),
        ({"arms": []}, "doubled or empty"),
        ({"joints": 5}, "joints has the wrong type"),
    ],
)
def test_wrong_description_is_one_sentence_with_its_path(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LightVLAError, match=rf"robot description .*mine\.yaml: .*{sentence}"):
        load_robot(written(tmp_path, **changes), "aloha1")


def test_unknown_robot_gripper_file_or_yaml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LightVLAError, match=r"config/robots/r2d2\.yaml of lightvla_ros is not installed"):
        load_robot("r2d2", "aloha1")
    with pytest.raises(LightVLAError, match="no gripper 'claw'; there are aloha1, trossen"):
        load_robot("aloha", "claw")
    with pytest.raises(LightVLAError, match="cannot read the robot description"):
        load_robot(str(tmp_path / "none.yaml"), "aloha1")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(LightVLAError, match="is not valid YAML"):
        load_robot(str(tmp_path / "bad.yaml"), "aloha1")


def test_camera_topic_is_the_drivers_own() -> None:
    assert robot().camera_topic("cam_high") == "cam_high/camera/color/image_rect_raw"
    with pytest.raises(LightVLAError, match="no camera cam_low; it has cam_high"):
        robot().camera_topic("cam_low")
