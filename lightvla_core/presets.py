"""Model sizes by name, and whole random checkpoints made from them: for tests, the demo and as a start for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from lightvla_core.checkpoint import save_checkpoint
from lightvla_core.contract import Camera, Channel, EndEffector, Gripper, PolicyContract, Pruning
from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import (
    DINOV2_LARGE,
    SIGLIP_SO400M,
    LlamaConfig,
    ModelConfig,
    TokenConfig,
    TowerConfig,
)
from lightvla_core.model.vla import LightVLA

# As stored in published checkpoints, where ImageNet's statistics went through bfloat16.
_IMAGENET_MEAN = (0.484375, 0.455078125, 0.40625)
_IMAGENET_STD = (0.228515625, 0.2236328125, 0.224609375)
_HALF = (0.5, 0.5, 0.5)

_TEXT_VOCABULARY = 768


def openvla_7b() -> ModelConfig:
    """The published sizes: DINOv2-L and SigLIP-So400m at 224 px, Llama-2-7B."""
    return ModelConfig(
        towers=(
            TowerConfig(DINOV2_LARGE, 224, _IMAGENET_MEAN, _IMAGENET_STD),
            TowerConfig(SIGLIP_SO400M, 224, _HALF, _HALF),
        ),
        llama=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_layers=32,
            num_heads=32,
            num_kv_heads=32,
            head_dim=128,
        ),
    )


def tiny() -> ModelConfig:
    """About 10 M parameters for 112 px images: the same structure, small enough for two CPU cores."""
    text, bins = _TEXT_VOCABULARY, 256
    empty = tiny_tokenizer().token_to_id("▁")
    assert empty is not None
    return ModelConfig(
        towers=(
            TowerConfig(DINOV2_LARGE, 112, _IMAGENET_MEAN, _IMAGENET_STD, embed_dim=192, depth=5, num_heads=3),
            TowerConfig(SIGLIP_SO400M, 112, _HALF, _HALF, embed_dim=192, depth=5, num_heads=3),
        ),
        llama=LlamaConfig(
            vocab_size=text + bins + 64,
            hidden_size=256,
            intermediate_size=512,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=64,
        ),
        tokens=TokenConfig(empty=empty, pad=text + bins, action_end=text + bins, num_bins=bins),
    )


PRESETS = {"openvla-7b": openvla_7b, "tiny": tiny}


def preset(name: str) -> ModelConfig:
    if name not in PRESETS:
        raise LightVLAError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]()


def tiny_tokenizer() -> Tokenizer:
    """A small byte-fallback BPE tokenizer in the manner of Llama's: word starts marked, any text representable."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=_TEXT_VOCABULARY, special_tokens=special, initial_alphabet=["▁", "\n"], show_progress=False
    )
    tokenizer.train_from_iterator(_training_sentences(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _training_sentences() -> Iterator[str]:
    verbs = ("pick up", "put down", "grasp", "lift", "push", "pull", "place", "transfer", "insert", "open", "close")
    things = ("cube", "block", "bowl", "cup", "drawer", "lid", "peg", "socket", "shirt", "towel", "plate", "bottle")
    colours = ("red", "green", "blue", "yellow", "black", "white")
    places = ("on the table", "in the bowl", "to the left arm", "to the right arm", "onto the plate", "next to it")
    for verb in verbs:
        for thing in things:
            for colour in colours:
                for place in places:
                    yield f"In: What action should the robot take to {verb} the {colour} {thing} {place}?\nOut:"


# -- whole checkpoints

_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
# The start pose of the ALOHA drivers, rad, with a half-open gripper, and how far around it the untrained policy roams.
_ALOHA_CENTER = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5)
_ALOHA_REACH = (0.4, 0.3, 0.3, 0.5, 0.4, 0.5, 0.5)


def aloha_contract(cameras: tuple[Camera, ...], chunk_length: int = 25, control_rate: float = 25.0) -> PolicyContract:
    """Two arms in absolute joint positions; grippers 0 closed to 1 open."""
    channels = tuple(
        Channel(f"{side}_{joint}", "normalized" if joint == "gripper" else "rad")
        for side in ("left", "right")
        for joint in _ARM
    )
    return PolicyContract(
        robot="aloha",
        cameras=cameras,
        proprioception=channels,
        actions=channels,
        action_space="joint_position",
        chunk_length=chunk_length,
        control_rate=control_rate,
        normalization="bounds",
        statistics_key="aloha_sim",
        gripper=Gripper(("left_gripper", "right_gripper"), open=1.0, closed=0.0),
        pruning=Pruning(multiplicity="weighted"),
    )


_EEF = ("eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz")
# The ready pose of an FR3's tool, m and axis-angle rad, with an open hand, and how far around it states are expected.
_FRANKA_CENTER = (0.307, 0.0, 0.487, 3.14, 0.0, 0.0, 0.02, 0.02)
_FRANKA_REACH = (0.3, 0.4, 0.4, 1.0, 1.0, 1.0, 0.02, 0.02)
# Of a full delta: with 20 actions of at most 0.05 m a second, 0.2 m/s.
_FRANKA_DELTA = 0.2


def franka_contract(cameras: tuple[Camera, ...], chunk_length: int = 8, control_rate: float = 20.0) -> PolicyContract:
    """One arm in end-effector deltas of at most 0.05 m and 0.5 rad, base frame; the gripper 0 closed or 1 open."""
    poses = tuple(Channel(name, "m" if i < 3 else "rad") for i, name in enumerate(_EEF))
    return PolicyContract(
        robot="franka",
        cameras=cameras,
        proprioception=(*poses, Channel("finger_1", "m"), Channel("finger_2", "m")),
        actions=tuple(Channel(name, "normalized") for name in (*_EEF, "gripper")),
        action_space="eef_delta",
        chunk_length=chunk_length,
        control_rate=control_rate,
        normalization="bounds",
        statistics_key="franka_sim",
        end_effector=EndEffector(linear_scale=0.05, angular_scale=0.5),
        gripper=Gripper(("gripper",), open=1.0, closed=0.0, binary=True),
        pruning=Pruning(multiplicity="weighted"),
    )


def write_tiny(folder: Path, seed: int = 0, robot: Literal["aloha", "franka"] = "aloha") -> Path:
    """A tiny checkpoint with random weights and two 112 px cameras. The same seed gives the same weights.

    aloha: 25 joint positions at 25 Hz around the start pose; franka: 8 small deltas at 20 Hz. It has learnt nothing.
    """
    contract, statistics = _tiny_aloha() if robot == "aloha" else _tiny_franka()
    config = tiny()
    weights = random_weights(config, contract, seed).items()
    save_checkpoint(folder, config, contract, statistics, tiny_tokenizer().to_str(), weights)
    return folder


def _tiny_aloha() -> tuple[PolicyContract, dict[str, Any]]:
    return aloha_contract((Camera("cam_high", 112, 112), Camera("cam_left_wrist", 112, 112))), _aloha_statistics()


def _tiny_franka() -> tuple[PolicyContract, dict[str, Any]]:
    contract = franka_contract((Camera("third_person", 112, 112), Camera("wrist", 112, 112)))
    center, reach = (torch.tensor(values, dtype=torch.float64) for values in (_FRANKA_CENTER, _FRANKA_REACH))
    proprio = {"min": (center - reach).tolist(), "max": (center + reach).tolist()}
    action = {"min": [-_FRANKA_DELTA] * 6 + [0.0], "max": [_FRANKA_DELTA] * 6 + [1.0]}
    return contract, {"franka_sim": {"action": action, "proprio": proprio}}


def _aloha_statistics() -> dict[str, Any]:
    center = torch.tensor(_ALOHA_CENTER * 2, dtype=torch.float64)
    reach = torch.tensor(_ALOHA_REACH * 2, dtype=torch.float64)
    entry: dict[str, Any] = {"min": (center - reach).tolist(), "max": (center + reach).tolist()}
    return {"aloha_sim": {"action": entry, "proprio": entry}}


def random_weights(config: ModelConfig, contract: PolicyContract, seed: int) -> dict[str, Tensor]:
    """float32 weights of a fresh model; the global random state is left as it was."""
    return {name: tensor.detach() for name, tensor in random_model(config, contract, seed).state_dict().items()}


def random_model(
    config: ModelConfig,
    contract: PolicyContract,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LightVLA:
    """A fresh model in evaluation mode, created where it stays: nothing passes through another device or dtype."""
    device = torch.device(device)
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            model = LightVLA(config, contract)
        finally:
            torch.set_default_dtype(default)
        model.language_model.apply(_init_llama)
    return model.eval()


def _init_llama(module: nn.Module) -> None:
    """Outputs as large as inputs, whatever the width, so that an untrained model already reacts to what it sees."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
