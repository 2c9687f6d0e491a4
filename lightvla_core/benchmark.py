"""How long a policy takes, on random weights made where they stay. Prints nothing: figures in a table, for the caller.

Times are end to end, from images in memory to actions in robot units, as Policy.predict_actions delivers them.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from rich.table import Table

from lightvla_core.contract import Camera, Channel, EndEffector, PolicyContract, Pruning
from lightvla_core.interface import ActionChunk, Observation
from lightvla_core.model.vla import LightVLA
from lightvla_core.normalization import Normalizer
from lightvla_core.policy import Policy, resolve_device
from lightvla_core.presets import preset, random_model, tiny_tokenizer
from lightvla_core.processing import PromptEncoder

_WARM_UP = 3


def bench_policy(
    name: str, device: str = "cpu", dtype: torch.dtype | None = None, batches: Sequence[int] = (1, 8), repeats: int = 50
) -> Table:
    """Create a preset and time its predictions. Two cameras, proprioception, 8 steps of 7 numbers, L1 head.

    Random weights keep few patches: a trained policy is between the rows with pruning and those without.
    dtype: by default float32 on a CPU and bfloat16 on a GPU
    Raises LightVLAError for an unknown preset or device.
    """
    target = resolve_device(device)
    dtype = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    started = time.perf_counter()
    model, policy = _random_policy(name, target, dtype)
    _synchronize(target)
    creation = time.perf_counter() - started
    table = Table(
        *("pruning", "batch", "p50 ms", "p99 ms", "vision ms", "language ms", "kept", "of", "peak GB"),
        title=f"{hardware(target)}\n{name}, {str(dtype).removeprefix('torch.')}, created in {creation:.1f} s",
    )
    for pruning in (Pruning(multiplicity="weighted"), Pruning(enabled=False)):
        model.contract = replace(model.contract, pruning=pruning)
        for batch in batches:
            table.add_row("yes" if pruning.enabled else "no", *_row(policy, batch, repeats))
    return table


def hardware(device: torch.device) -> str:
    """The machine in one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return (
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"
    )


def _random_policy(name: str, device: torch.device, dtype: torch.dtype) -> tuple[LightVLA, Policy]:
    config = preset(name)
    size = config.towers[0].image_size
    contract = PolicyContract(
        robot="benchmark",
        cameras=(Camera("third_person", size, size), Camera("wrist", size, size)),
        proprioception=tuple(Channel(f"state_{i}", "normalized") for i in range(8)),
        actions=tuple(Channel(f"action_{i}", "normalized") for i in range(7)),
        action_space="eef_delta",
        end_effector=EndEffector(linear_scale=0.05, angular_scale=0.5),
        chunk_length=8,
        control_rate=20.0,
        normalization="bounds",
        statistics_key="benchmark",
    )
    statistics = {
        part: {"min": [-1.0] * size, "max": [1.0] * size}
        for part, size in (("proprio", len(contract.proprioception)), ("action", len(contract.actions)))
    }
    normalizer = Normalizer.from_statistics({"benchmark": statistics}, contract, "benchmark")
    model = random_model(config, contract, seed=0, device=device, dtype=dtype)
    return model, Policy(model, PromptEncoder(tiny_tokenizer(), contract, config.tokens), normalizer)


def _row(policy: Policy, batch: int, repeats: int) -> list[str]:
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
    random = np.random.default_rng(0)
    seconds, chunks = [], list[ActionChunk]()
    for repeat in range(_WARM_UP + repeats):
        observations = [_observation(policy.contract, random) for _ in range(batch)]
        started = time.perf_counter()
        predicted = policy.predict_actions(observations)
        if repeat >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
            chunks += predicted
    kept = [sum(int(mask.sum()) for mask in chunk.kept.values()) for chunk in chunks]
    patches = sum(mask.size for mask in chunks[0].kept.values())
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    stages = [f"{np.median([chunk.timing[stage] for chunk in chunks]) * 1000:.1f}" for stage in ("vision", "language")]
    count = (f"{min(kept)}-{max(kept)}", str(patches))
    return [str(batch), f"{p50:.1f}", f"{p99:.1f}", *stages, *count, f"{_peak_memory(policy.device) / 1e9:.1f}"]


def _observation(contract: PolicyContract, random: np.random.Generator) -> Observation:
    """Coloured squares: noise that is independent from pixel to pixel looks alike in every patch."""
    images = {}
    for camera in contract.cameras:
        coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        images[camera.name] = np.kron(coarse, np.ones((camera.height // 7, camera.width // 7, 1), np.uint8))
    proprio = random.uniform(-1, 1, len(contract.proprioception))
    return Observation(images, proprio, "pick up the red cube and put it into the bowl")


def _peak_memory(device: torch.device) -> float:
    """Bytes: of the GPU's tensors, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
