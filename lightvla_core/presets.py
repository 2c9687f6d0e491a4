"""Model sizes by name, and whole random checkpoints made from them: for tests, the demo and as a start for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from lightvla_core.checkpoint import save_checkpoint
from lightvla_core.contract import Camera, Channel, Gripper, PolicyContract, Pruning
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


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """A tiny ALOHA checkpoint with random weights: two 112 px cameras, 25 steps at 25 Hz. The same seed gives the
    same weights. It moves the arms around their start pose and has learnt nothing.
    """
    contract = aloha_contract((Camera("cam_high", 112, 112), Camera("cam_left_wrist", 112, 112)))
    config = tiny()
    weights = random_weights(config, contract, seed).items()
    save_checkpoint(folder, config, contract, _aloha_statistics(), tiny_tokenizer().to_str(), weights)
    return folder


def _aloha_statistics() -> dict[str, Any]:
    center = torch.tensor(_ALOHA_CENTER * 2, dtype=torch.float64)
    reach = torch.tensor(_ALOHA_REACH * 2, dtype=torch.float64)
    entry: dict[str, Any] = {"min": (center - reach).tolist(), "max": (center + reach).tolist()}
    return {"aloha_sim": {"action": entry, "proprio": entry}}


def random_weights(config: ModelConfig, contract: PolicyContract, seed: int) -> dict[str, Tensor]:
    """float32 weights of a fresh model; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LightVLA(config, contract)
        model.language_model.apply(_init_llama)
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _init_llama(module: nn.Module) -> None:
    """Outputs as large as inputs, whatever the width, so that an untrained model already reacts to what it sees."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
