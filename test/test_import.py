"""`lightvla import`: what it decides, that the weights arrive unchanged, and what it refuses."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from published_fixtures import (
    FUSED_224,
    FUSED_384,
    SIGLIP_ONLY,
    SIGLIP_ONLY_384,
    Published,
    save_weights,
    statistics,
    write_configuration,
    write_json,
    write_published,
)
from safetensors.torch import load_file

from lightvla_core import Observation, Policy
from lightvla_core.checkpoint import load_model
from lightvla_core.contract import OPENVLA_PROMPT, VICUNA_PROMPT, Camera, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.importing import ImportOptions, plan_import, read_robot, write_import
from lightvla_core.presets import aloha_contract
from lightvla_core.published import read_model_config
from lightvla_core.resources import resource
from lightvla_ros.robots.description import check_contract
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.franka import description_for

OFT = ImportOptions("oft", "libero")
LIGHTVLA = ImportOptions("lightvla", "libero")
OPENVLA = ImportOptions("openvla", "libero")


@pytest.fixture(scope="module")
def libero(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Read it, never write to it."""
    return write_published(tmp_path_factory.mktemp("published") / "libero")


def do_import(source: Path, destination: Path, options: ImportOptions = LIGHTVLA) -> PolicyContract:
    plan = plan_import(source, options)
    write_import(plan, destination)
    return plan.contract


def assert_holds(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    state = load_model(folder).state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name].float()) for name in weights)


# -- checkpoint forms and options


@pytest.mark.parametrize("form", ["safetensors", "sharded_safetensors", "bin", "sharded_bin"])
def test_every_weight_file_form_arrives_unchanged(tmp_path: Path, form: str) -> None:
    published = write_published(tmp_path / "src", form=form)
    do_import(published.folder, tmp_path / "dst")
    assert_holds(tmp_path / "dst", published.weights)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("head", ["l1", "diffusion", "discrete"])
def test_the_head_is_found_by_its_side_files(tmp_path: Path, head: str, prefix: str) -> None:
    published = write_published(tmp_path / "src", head=head, prefix=prefix)
    assert do_import(published.folder, tmp_path / "dst").action_head == head
    assert_holds(tmp_path / "dst", published.weights)


@pytest.mark.parametrize("proprio", [True, False])
def test_proprioception_is_on_where_its_side_file_is(tmp_path: Path, proprio: bool) -> None:
    published = write_published(tmp_path / "src", proprio=proprio)
    contract = do_import(published.folder, tmp_path / "dst")
    assert len(contract.proprioception) == (8 if proprio else 0)
    assert_holds(tmp_path / "dst", published.weights)


@pytest.mark.parametrize("robot", ["libero", "aloha"])
def test_film_replaces_the_whole_backbone(tmp_path: Path, robot: str) -> None:
    published = write_published(tmp_path / "src", robot, film=True)
    assert do_import(published.folder, tmp_path / "dst", dataclasses.replace(LIGHTVLA, robot=robot)).film
    assert_holds(tmp_path / "dst", published.weights)


@pytest.mark.parametrize(("towers", "size"), [(SIGLIP_ONLY, 56), (SIGLIP_ONLY_384, 384), (FUSED_384, 384)])
def test_single_towers_and_384_px_load(tmp_path: Path, towers: tuple[str, ...], size: int) -> None:
    published = write_published(tmp_path / "src", towers=towers, image_size=size)
    contract = do_import(published.folder, tmp_path / "dst")
    assert {(camera.height, camera.width) for camera in contract.cameras} == {(size, size)}
    assert_holds(tmp_path / "dst", published.weights)
    model = load_model(tmp_path / "dst")
    assert model.vision_backbone.grid == (size // 14, size // 14)


def test_a_backbone_named_only_by_its_id_is_known(tmp_path: Path) -> None:
    published = write_published(tmp_path / "src", towers=SIGLIP_ONLY_384, image_size=384)
    config = json.loads((published.folder / "config.json").read_text())
    del config["timm_model_ids"], config["image_sizes"]
    write_json(published.folder / "config.json", config | {"vision_backbone_id": "siglip-vit-so400m-384px"})
    do_import(published.folder, tmp_path / "dst")
    assert_holds(tmp_path / "dst", published.weights)


@pytest.mark.parametrize(
    ("choice", "stored"), [("source", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)]
)
def test_weights_are_stored_in_the_dtype_asked_for(tmp_path: Path, choice: str, stored: torch.dtype) -> None:
    published = write_published(tmp_path / "src", dtype=torch.bfloat16)
    do_import(published.folder, tmp_path / "dst", dataclasses.replace(LIGHTVLA, dtype=choice))  # type: ignore[arg-type]
    assert {tensor.dtype for tensor in load_file(tmp_path / "dst/model.safetensors").values()} == {stored}


def test_large_weights_are_written_in_shards_that_other_tools_read(libero: Published, tmp_path: Path) -> None:
    write_import(plan_import(libero.folder, LIGHTVLA), tmp_path / "dst", shard_bytes=50_000)
    files = sorted((tmp_path / "dst").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    index = json.loads((tmp_path / "dst/model.safetensors.index.json").read_text())
    assert read.keys() == index["weight_map"].keys() == libero.weights.keys()
    assert all(torch.equal(read[name], libero.weights[name]) for name in read)
    assert_holds(tmp_path / "dst", libero.weights)


def test_an_imported_checkpoint_predicts(tmp_path: Path) -> None:
    published = write_published(tmp_path / "src", text={"vocab_size": 32064})
    do_import(published.folder, tmp_path / "dst", dataclasses.replace(LIGHTVLA, center_crop=False))
    data = json.loads((tmp_path / "dst/contract.json").read_text())
    for camera in data["cameras"]:
        camera["jpeg_quality"] = None
    write_json(tmp_path / "dst/contract.json", data)
    images = {name: np.zeros((64, 64, 3), np.uint8) for name in ("third_person", "wrist")}
    chunk = Policy.from_checkpoint(tmp_path / "dst").predict_action(Observation(images, np.zeros(8), "go", 0.0))
    assert chunk.actions.shape == (8, 7)


# -- decisions


def test_openvla_is_causal_unpruned_discrete_and_one_action(tmp_path: Path) -> None:
    published = write_published(tmp_path / "src", head="discrete", proprio=False)
    contract = do_import(published.folder, tmp_path / "dst", OPENVLA)
    assert (contract.attention, contract.pruning.enabled, contract.chunk_length) == ("causal", False, 1)
    assert (contract.action_head, contract.camera_names) == ("discrete", ("third_person",))
    assert_holds(tmp_path / "dst", published.weights)


def test_oft_is_bidirectional_and_unpruned(libero: Published) -> None:
    contract = plan_import(libero.folder, OFT).contract
    assert (contract.attention, contract.pruning.enabled) == ("bidirectional", False)
    assert contract.readout == "preceding"


def test_lightvla_prunes_as_published_and_reads_as_trained(libero: Published) -> None:
    contract = plan_import(libero.folder, LIGHTVLA).contract
    assert (contract.pruning.enabled, contract.pruning.multiplicity) == (True, "ignore")
    assert contract.readout == "preceding"


def test_every_decision_is_told_with_its_reason(libero: Published) -> None:
    decisions = {decision.what: decision for decision in plan_import(libero.folder, LIGHTVLA).decisions}
    told = {"attention", "pruner", "readout", "multiplicity", "action head", "FiLM", "normalization"}
    assert told <= set(decisions)
    assert all(decision.reason for decision in decisions.values())


@pytest.mark.parametrize(
    ("variant", "rows"),
    [
        ("openvla", {"pruner": "off"}),
        ("oft", {"pruner": "off", "readout": "preceding"}),
        ("lightvla", {"pruner": "on", "readout": "preceding", "multiplicity": "ignore"}),
    ],
)
def test_only_what_has_an_effect_is_told(variant: str, rows: dict[str, str], tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src", head="discrete", proprio=False).folder
    told = {
        decision.what: decision.value for decision in plan_import(folder, ImportOptions(variant, "libero")).decisions
    }  # type: ignore[arg-type]
    assert {what: told[what] for what in ("pruner", "readout", "multiplicity") if what in told} == rows


@pytest.mark.parametrize(("backbone", "prompt"), [("llama2-7b-pure", OPENVLA_PROMPT), ("vicuna-v15-7b", VICUNA_PROMPT)])
def test_the_language_model_decides_the_prompt(backbone: str, prompt: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    change_config(folder, llm_backbone_id=backbone)
    plan = plan_import(folder, LIGHTVLA)
    assert plan.contract.prompt_template == prompt
    assert next(d for d in plan.decisions if d.what == "prompt").value == repr(prompt)


@pytest.mark.parametrize(("key", "doubted"), [("bridge_orig", True), ("libero_goal", False), ("my_task", False)])
def test_statistics_whose_name_says_another_robot_are_pointed_out(key: str, doubted: bool, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    write_json(folder / "dataset_statistics.json", {key: statistics("libero")})
    told = next(d for d in plan_import(folder, LIGHTVLA).decisions if d.what == "statistics")
    assert (told.value, "are they meant?" in told.reason) == (key, doubted)
    assert "the only ones there (dataset_statistics.json)" in told.reason


def test_explicit_arguments_win(libero: Published) -> None:
    options = ImportOptions(
        "lightvla",
        "libero",
        cameras=("wrist", "shoulder"),
        readout="published_lightvla",
        multiplicity="weighted",
        center_crop=False,
        control_rate=10.0,
        proprio=False,
    )
    contract = plan_import(libero.folder, options).contract
    assert contract.camera_names == ("wrist", "shoulder")
    assert contract.cameras[1].rotate == 180
    assert (contract.readout, contract.pruning.multiplicity) == ("published_lightvla", "weighted")
    assert {camera.crop_area for camera in contract.cameras} == {1.0}
    assert (contract.control_rate, contract.proprioception) == (10.0, ())


def test_a_full_contract_serves_as_the_robot(libero: Published, tmp_path: Path) -> None:
    contract = dataclasses.replace(plan_import(libero.folder, LIGHTVLA).contract, robot="my_arm")
    (tmp_path / "contract.json").write_text(contract.to_json())
    again = plan_import(libero.folder, dataclasses.replace(LIGHTVLA, robot=str(tmp_path / "contract.json"))).contract
    assert again == contract


@pytest.mark.parametrize("robot", ["libero", "aloha", "bridge"])
def test_known_robots_have_the_published_sizes(robot: str, tmp_path: Path) -> None:
    published = write_published(tmp_path / "src", robot)
    contract = do_import(published.folder, tmp_path / "dst", ImportOptions("oft", robot))
    sizes = len(contract.actions), len(contract.proprioception), contract.chunk_length
    assert sizes == {"libero": (7, 8, 8), "aloha": (14, 14, 25), "bridge": (7, 7, 5)}[robot]
    assert_holds(tmp_path / "dst", published.weights)


def test_aloha_has_the_channels_that_the_robot_and_the_presets_use() -> None:
    preset = dataclasses.asdict(aloha_contract((Camera("cam_high"),)))
    fields = read_robot("aloha")
    for name in ("actions", "proprioception"):
        assert fields[name] == [dict(channel) for channel in preset[name]]
    assert fields["gripper"]["channels"] == list(preset["gripper"]["channels"])
    robot = yaml.safe_load(resource("config/robots/aloha.yaml").read_text())
    assert [camera["name"] for camera in fields["cameras"]] == list(robot["cameras"])


def test_libero_is_executed_as_the_simulator_wants_it(libero: Published) -> None:
    contract = plan_import(libero.folder, LIGHTVLA).contract
    assert contract.end_effector is not None
    assert contract.gripper is not None
    assert (contract.end_effector.linear_scale, contract.end_effector.angular_scale) == (0.05, 0.5)
    assert (contract.gripper.open, contract.gripper.closed, contract.gripper.binary) == (1.0, 0.0, True)
    assert {(c.rotate, c.jpeg_quality, c.resize, c.crop_area) for c in contract.cameras} == {(180, 95, "lanczos3", 0.9)}


def test_an_import_for_a_franka_fits_the_robot_that_executes_it(libero: Published) -> None:
    contract = plan_import(libero.folder, dataclasses.replace(LIGHTVLA, robot="franka")).contract
    robot = load_robot("franka", "")
    check_contract(contract, robot)
    channels = {channel.name: channel for channel in description_for(contract, robot).channels}
    # 0.3 m/s and 0.8 rad/s, in units of 0.05 m and 0.5 rad.
    assert (channels["eef_x"].upper, channels["eef_rz"].upper) == pytest.approx((6.0, 1.6))
    assert (channels["gripper"].lower, channels["gripper"].upper) == (0.0, 1.0)
    assert (contract.chunk_length, contract.control_rate, contract.normalization) == (8, 20.0, "bounds_q99")
    assert [robot.camera_topic(name).split("/")[0] for name in contract.camera_names] == ["third_person", "wrist"]


def test_libero_and_franka_have_the_same_channels() -> None:
    libero, franka = read_robot("libero"), read_robot("franka")
    for name in ("actions", "proprioception", "end_effector", "gripper", "chunk_length", "control_rate"):
        assert libero[name] == franka[name]


# -- statistics and tokenizer


def test_statistics_come_from_the_config_where_no_file_holds_them(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    (folder / "dataset_statistics.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"norm_stats": {"inside": statistics("libero")}})
    assert do_import(folder, tmp_path / "dst").statistics_key == "inside"
    assert "inside" in json.loads((tmp_path / "dst/dataset_statistics.json").read_text())


def test_several_statistics_need_a_choice(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    entries = dict.fromkeys(("libero_goal_no_noops", "libero_object_no_noops"), statistics("libero"))
    write_json(folder / "dataset_statistics.json", entries)
    with pytest.raises(LightVLAError, match="libero_goal_no_noops, libero_object_no_noops; choose one with --unnorm"):
        plan_import(folder, LIGHTVLA)
    chosen = plan_import(folder, dataclasses.replace(LIGHTVLA, unnorm_key="libero_goal")).contract
    assert chosen.statistics_key == "libero_goal_no_noops"
    with pytest.raises(LightVLAError, match="no statistics for 'bridge_orig'; it has libero_goal_no_noops"):
        plan_import(folder, dataclasses.replace(LIGHTVLA, unnorm_key="bridge_orig"))


def test_a_missing_tokenizer_is_told_and_can_be_given(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    elsewhere = (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    plan = plan_import(folder, LIGHTVLA)
    assert next(d for d in plan.decisions if d.what == "tokenizer").value == "missing"
    write_import(plan, tmp_path / "without")
    with pytest.raises(LightVLAError, match=r"holds no tokenizer\.json"):
        Policy.from_checkpoint(tmp_path / "without")
    do_import(folder, tmp_path / "with", dataclasses.replace(LIGHTVLA, tokenizer=elsewhere))
    assert (tmp_path / "with/tokenizer.json").is_file()


def test_a_damaged_sentencepiece_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(LightVLAError, match=r"tokenizer\.model could not be converted to tokenizer\.json"):
        plan_import(folder, LIGHTVLA)


def test_a_tokenizer_that_is_no_text_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(LightVLAError, match=r"tokenizer\.json is not a tokenizer"):
        plan_import(folder, LIGHTVLA)


# -- what is refused: one sentence that names the file and the tensor, and nothing is written


def truncate_shard(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_shard(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").unlink()


def overstate_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["projector.fc8.weight"] = "model-00001-of-00003.safetensors"
    write_json(path, index)


def escape_folder(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["projector.fc1.weight"] = "../elsewhere.safetensors"
    write_json(path, index)


def change_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    tensors |= {name: value for name, value in change.items() if value is not None}
    save_weights(folder, {n: t for n, t in tensors.items() if change.get(n, t) is not None}, "sharded_safetensors")


def lose_tensor(folder: Path) -> None:
    change_weights(folder, {"projector.fc2.bias": None})


def add_tensor(folder: Path) -> None:
    change_weights(folder, {"projector.fc9.bias": torch.zeros(2)})


def reshape_tensor(folder: Path) -> None:
    change_weights(folder, {"projector.fc2.bias": torch.zeros(2)})


def poison_tensor(folder: Path) -> None:
    change_weights(folder, {"projector.fc2.bias": torch.full((16,), float("nan"))})


def truncate_side_file(folder: Path) -> None:
    path = folder / "action_head--150000_checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000])


def double_side_file(folder: Path) -> None:
    path = folder / "action_head--150000_checkpoint.pt"
    (folder / "action_head--50000_checkpoint.pt").write_bytes(path.read_bytes())


def swap_statistics(folder: Path) -> None:
    write_json(folder / "dataset_statistics.json", {"aloha_task": statistics("aloha")})


def lose_statistics(folder: Path) -> None:
    (folder / "dataset_statistics.json").unlink()


def break_config(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "llama"})


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | fields)


DAMAGES = [
    (truncate_shard, r"model-00002-of-00003\.safetensors is truncated .*the tensor \S+ ends beyond"),
    (lose_shard, r"index\.json names the shard model-00003-of-00003\.safetensors, which is missing"),
    (overstate_index, r"model-00001-of-00003\.safetensors lacks the tensor projector\.fc8\.weight, which"),
    (escape_folder, r"index\.json has no weight_map from tensor names to files beside it"),
    (lose_tensor, r"src lacks the tensor projector\.fc2\.bias"),
    (add_tensor, r"safetensors holds the tensor projector\.fc9\.bias, for which the model"),
    (reshape_tensor, r"safetensors: the tensor projector\.fc2\.bias has shape \(2,\), but the model expects \(16,\)"),
    (poison_tensor, r"safetensors: the tensor projector\.fc2\.bias holds NaN"),
    (truncate_side_file, r"action_head--150000_checkpoint\.pt is truncated or not a torch file"),
    (double_side_file, r"exactly one action_head--N_checkpoint\.pt, found action_head--150000_checkpoint\.pt, action"),
    (swap_statistics, r"dataset_statistics\.json: aloha_task\.action describes 14 numbers, but the contract has 7"),
    (lose_statistics, r"src has no statistics to un-normalize actions with"),
    (break_config, r"config\.json, with preprocessor_config\.json, is not an OpenVLA-like configuration: it lacks"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named_in_one_sentence_and_nothing_is_written(damage, sentence, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = write_published(tmp_path / "src", form="sharded_safetensors").folder
    damage(folder)
    with pytest.raises(LightVLAError, match=sentence) as error:
        do_import(folder, tmp_path / "dst")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"timm_model_ids": 3}, "a value has another form than expected"),
        ({"text_config": []}, "a value has another form than expected"),
        ({"timm_model_ids": ["hf-hub:someone/tower"] * 2}, "'hf-hub:someone/tower' is no vision transformer"),
        ({"timm_model_ids": ["resnet50"] * 2}, "'resnet50' is no vision transformer that timm knows"),
        ({"tiny_vit_overrides": {SIGLIP_ONLY[0]: {"num_heads": 0}}}, "num_heads should be a whole number from 1"),
        ({"text_config": {"num_attention_heads": 0}}, "config.json"),
        ({"text_config": {"hidden_size": "16"}}, "config.json"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers asks for 'quick_gelu'"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy is 'letterbox'; supported is resize-naive"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone is False, but it lists 2 vision towers"),
    ],
)
def test_a_configuration_of_another_model_is_refused_in_one_sentence(
    fields: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_configuration(tmp_path, "libero", FUSED_224, 56, {})
    change_config(tmp_path, **fields)
    with pytest.raises(LightVLAError, match=sentence) as error:
        read_model_config(tmp_path)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_vanish_while_they_are_read_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src").folder
    plan = plan_import(folder, LIGHTVLA)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LightVLAError, match=r"cannot read .*model\.safetensors \(No such file"):
        write_import(plan, tmp_path / "new" / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pruning": [True]}, "pruning should be a JSON object"),
        ({"proprioception": 8}, "proprioception should be a list"),
        ({"statistics_key": ["a"]}, "statistics_key should be of type str"),
        ({"cameras": ["front"]}, r"cameras\[0\] should be a JSON object"),
        ({"cameras": []}, "lists no camera"),
        ({"cameras": [{"name": "front", "crop_area": "most"}]}, r"cameras\[0\]: crop_area should be of type float"),
        ({"robot": datetime.date(2025, 1, 2), "control_rate": None}, "control_rate should be of type float"),
    ],
)
def test_a_robot_file_with_a_wrong_type_is_named_with_its_field(
    fields: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    described = yaml.safe_load(resource("config/contracts/libero.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(described | fields))
    with pytest.raises(LightVLAError, match=rf"mine\.yaml: .*{sentence}"):
        read_robot(str(tmp_path / "mine.yaml"))


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["action_head--150000_checkpoint.pt", "pytorch_model.bin"])
def test_pickled_objects_are_refused_and_never_run(name: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src", form="bin").folder
    torch.save({"weight": torch.zeros(1), "bomb": Bomb(tmp_path / "exploded")}, folder / name)
    with pytest.raises(LightVLAError, match=f"{name} holds pickled objects other than tensors and was not loaded"):
        do_import(folder, tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_head_of_another_robot_is_named_by_its_tensor(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "src", "aloha").folder
    write_json(folder / "dataset_statistics.json", {"libero_task": statistics("libero")})
    with pytest.raises(LightVLAError, match=r"_checkpoint\.pt: the tensor \S+ has shape"):
        plan_import(folder, LIGHTVLA)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (OPENVLA, "--variant openvla has no action head of kind l1"),
        (dataclasses.replace(OPENVLA, readout="preceding"), "--readout has no effect with --variant openvla"),
        (dataclasses.replace(OFT, multiplicity="weighted"), "--multiplicity has no effect with --variant oft, only"),
        (
            dataclasses.replace(LIGHTVLA, robot="toaster"),
            "unknown robot 'toaster'; known are aloha, bridge, franka, libero",
        ),
        (dataclasses.replace(LIGHTVLA, film=True), "exactly one vision_backbone--N_checkpoint.pt, found none"),
        (dataclasses.replace(LIGHTVLA, control_rate=-1.0), "control_rate is -1.0 Hz"),
        (dataclasses.replace(LIGHTVLA, tokenizer=Path("/nowhere.json")), r"tokenizer /nowhere\.json does not exist"),
    ],
)
def test_contradictions_are_refused(libero: Published, options: ImportOptions, sentence: str) -> None:
    with pytest.raises(LightVLAError, match=sentence):
        plan_import(libero.folder, options)


def test_a_camera_size_that_the_towers_do_not_take_is_refused(libero: Published, tmp_path: Path) -> None:
    fields = yaml.safe_load(resource("config/contracts/libero.yaml").read_text())
    fields["cameras"][0]["height"] = 224
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(LightVLAError, match=r"third_person .*has height 224, but the checkpoint's towers take 56 px"):
        plan_import(libero.folder, dataclasses.replace(LIGHTVLA, robot=str(tmp_path / "mine.yaml")))


# -- the command


def test_the_command_prints_what_it_set_and_fails_with_one_sentence(
    lightvla: Callable[..., Any], libero: Published, tmp_path: Path
) -> None:
    arguments = ("import", libero.folder, tmp_path / "dst", "--robot", "libero", "--variant", "lightvla")
    done = lightvla(*arguments)
    assert done.status == 0, done.stderr
    for word in ("attention", "bidirectional", "pruner", "readout", "multiplicity", "wrote"):
        assert word in done.stdout
    assert "exists already" in lightvla(*arguments).sentence
