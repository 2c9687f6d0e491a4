"""What a checkpoint folder, of this package or published, holds and what it lacks, without loading weights.

Gathers facts into an Inspection and renders it as tables; repairs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightvla_core import checkpoint, importing, lora, published
from lightvla_core.contract import Camera, Channel, PolicyContract, Pruning
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import is_own_format, read_json, require_folder
from lightvla_core.model.config import ModelConfig
from lightvla_core.normalization import Normalizer, check_statistics
from lightvla_core.weights import StoredTensor, list_weights

# Part of the model -> how its tensors' names begin, the longer prefix first.
_PARTS = {
    "first vision tower": "vision_backbone.featurizer.",
    "second vision tower": "vision_backbone.fused_featurizer.",
    "projector": "projector.",
    "language model": "language_model.",
    "proprioception projector": "proprio_projector.",
    "noisy action projector": "noisy_action_projector.",
    "action head": "action_head.",
}


@dataclass(frozen=True)
class Part:
    """One part of the model: its parameters, how they are stored, and their bytes on disk."""

    name: str
    parameters: int
    dtypes: str
    stored_bytes: int


@dataclass
class Inspection:
    """Facts about a folder.

    facts: label -> text
    needed: what `lightvla import` must be told
    problems: what is missing or damaged, a sentence each
    """

    folder: Path
    form: str
    contract: PolicyContract | None = None
    parts: list[Part] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)


def inspect_folder(folder: Path) -> Inspection:
    """Reads configuration and headers only. Raises LightVLAError where there is no checkpoint folder at all."""
    require_folder(folder)
    published.refuse_lone_adapter(folder)
    return _inspect_own(folder) if is_own_format(folder) else _inspect_published(folder)


def _inspect_own(folder: Path) -> Inspection:
    found = Inspection(folder, "checkpoint of this package")
    contract = _attempt(found, lambda: PolicyContract.from_file(folder / checkpoint.CONTRACT_FILE))
    config = _attempt(found, lambda: checkpoint.read_config(folder))
    tensors = _attempt(found, lambda: checkpoint.list_model_weights(folder))
    found.contract = contract
    if tensors is not None:
        found.parts = _count(tensors)
    if config is not None:
        found.facts.update(_describe_model(config))
    if config is not None and contract is not None:
        _attempt(found, lambda: checkpoint.check_cameras(config, contract, folder))
        if tensors is not None:
            _attempt(found, lambda: checkpoint.check_listed(tensors, checkpoint.model_shapes(config, contract), folder))
    path = folder / checkpoint.STATISTICS_FILE
    statistics = _attempt(found, lambda: check_statistics(read_json(path), str(path)))
    if statistics is not None:
        found.facts["statistics"] = ", ".join(statistics)
        if contract is not None:
            _attempt(found, lambda: Normalizer.from_statistics(statistics, contract, str(path)))
    if (folder / checkpoint.TOKENIZER_FILE).is_file():
        found.facts["tokenizer"] = checkpoint.TOKENIZER_FILE
    else:
        found.problems.append(f"{folder} holds no {checkpoint.TOKENIZER_FILE}; a checkpoint needs its tokenizer")
    if (folder / lora.FOLDER).is_dir():
        found.facts["LoRA adapter"] = f"{lora.FOLDER}/, merged when the checkpoint is loaded"
    return found


def _inspect_published(folder: Path) -> Inspection:
    found = Inspection(folder, "published checkpoint (OpenVLA, OpenVLA-OFT or LightVLA)")
    found.needed.append("--variant openvla|oft|lightvla: the weights cannot tell")
    found.needed.append("--robot libero|aloha|franka|bridge, or a file: cameras, proprioception, actions, rate")
    config = _attempt(found, lambda: published.read_model_config(folder))
    if config is not None:
        found.facts.update(_describe_model(config))
    _inspect_side_files(folder, found)
    statistics = _attempt(found, lambda: importing.read_statistics(folder))
    if statistics is not None:
        found.facts["statistics"] = f"{', '.join(statistics[0])} ({statistics[1].name})"
        if len(statistics[0]) > 1:
            found.needed.append(f"--unnorm-key {'|'.join(statistics[0])}")
    if (folder / checkpoint.TOKENIZER_FILE).is_file() or (folder / importing.SENTENCEPIECE_FILE).is_file():
        found.facts["tokenizer"] = "there"
    else:
        found.needed.append("--tokenizer FILE: the folder holds none")
    _inspect_published_weights(folder, config, found)
    return found


def _inspect_side_files(folder: Path, found: Inspection) -> None:
    head = _attempt(found, lambda: importing.detect_head(folder))
    if head is not None:
        found.facts["action head"] = f"{head[0]} ({head[1]})"
    for label, part in (("proprioception", "proprio_projector"), ("FiLM", "vision_backbone")):
        files = published.find_side_files(folder, part)
        found.facts[label] = files[0].name if files else f"no {part} file"
    if (folder / lora.FOLDER).is_dir():
        adapter = _attempt(found, lambda: lora.read_adapter(folder / lora.FOLDER))
        if adapter is not None:
            found.facts["LoRA adapter"] = f"{len(adapter.updates)} matrices; import finds out whether they are merged"


def _inspect_published_weights(folder: Path, config: ModelConfig | None, found: Inspection) -> None:
    tensors = _attempt(found, lambda: list_weights(folder))
    if config is None or tensors is None:
        return
    film = bool(published.find_side_files(folder, "vision_backbone"))
    # Cameras and actions change no shape outside the heads, so that any will do here.
    probe = PolicyContract(
        robot="any",
        cameras=(Camera("any"),),
        proprioception=(),
        actions=(Channel("any", "normalized"),),
        action_space="joint_position",
        chunk_length=1,
        control_rate=1.0,
        normalization="bounds",
        statistics_key="any",
        action_head="discrete",
        film=film,
        pruning=Pruning(enabled=False),
    )
    used = _attempt(found, lambda: published.list_model_tensors(folder, probe))
    if used is None:
        return
    _attempt(found, lambda: checkpoint.check_listed(used, checkpoint.model_shapes(config, probe), folder))
    found.parts = _count([*used, *_side_tensors(folder, found)])


def _side_tensors(folder: Path, found: Inspection) -> Iterator[StoredTensor]:
    for part in ("proprio_projector", "noisy_action_projector", "action_head"):
        for path in published.find_side_files(folder, part):
            for tensor in _attempt(found, partial(published.list_side_file, path)) or []:
                yield dataclasses.replace(tensor, name=published.SIDE_FILES[part] + tensor.name)


def _attempt(found: Inspection, action: Callable[[], Any]) -> Any:
    """The action's result, or None with its sentence among the problems."""
    try:
        return action()
    except LightVLAError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return None


def _describe_model(config: ModelConfig) -> dict[str, str]:
    llama = config.llama
    return {
        "vision": ", ".join(f"{tower.timm_id} at {tower.image_size} px" for tower in config.towers),
        "language": f"{llama.num_layers} layers, width {llama.hidden_size}, {llama.vocab_size} tokens",
    }


def _count(tensors: list[StoredTensor]) -> list[Part]:
    parts = []
    for name, prefix in _PARTS.items():
        members = [tensor for tensor in tensors if tensor.name.startswith(prefix)]
        if members:
            kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in members})
            stored = sum(tensor.size * tensor.dtype.itemsize for tensor in members)
            parts.append(Part(name, sum(tensor.size for tensor in members), ", ".join(kinds), stored))
    return parts


# -- rendering


def render(found: Inspection) -> RenderableType:
    tables: list[RenderableType] = [_facts_table(found), _parts_table(found)]
    if found.needed:
        tables.append(_list_table("lightvla import needs", found.needed, ""))
    if found.problems:
        tables.append(_list_table("missing or damaged", found.problems, "red"))
    return Group(*tables)


def _facts_table(found: Inspection) -> Table:
    table = Table(show_header=False)
    table.add_row("folder", Text(str(found.folder)))
    table.add_row("form", found.form)
    if found.contract is not None:
        for label, text in _describe_contract(found.contract):
            table.add_row(Text(label), Text(text))
    for label, text in found.facts.items():
        table.add_row(label, Text(text))
    return table


def _describe_contract(contract: PolicyContract) -> Iterator[tuple[str, str]]:
    yield "contract", contract.hash
    yield "robot", contract.robot
    for camera in contract.cameras:
        jpeg = f", JPEG {camera.jpeg_quality}" if camera.jpeg_quality else ""
        crop = f", crop {camera.crop_area:g}" if camera.crop_area < 1 else ""
        turn = f", turned by {camera.rotate}°" if camera.rotate else ""
        yield f"camera {camera.name}", f"{camera.width}x{camera.height} px{turn}{jpeg}, {camera.resize}{crop}"
    for label, channels in (("proprioception", contract.proprioception), ("actions", contract.actions)):
        yield label, ", ".join(f"{c.name} ({c.unit})" for c in channels) or "none"
    yield "action space", contract.action_space
    yield "chunk", f"{contract.chunk_length} actions at {contract.control_rate:g} Hz"
    yield "normalization", f"{contract.normalization} of {contract.statistics_key}"
    yield "action head", f"{contract.action_head}, reading {contract.readout}"
    yield "FiLM", "on" if contract.film else "off"
    yield "attention", contract.attention
    pruning = contract.pruning
    yield "pruning", f"on, multiplicity {pruning.multiplicity}" if pruning.enabled else "off"


def _parts_table(found: Inspection) -> Table:
    table = Table("part", "parameters", "stored as", "on disk")
    for part in found.parts:
        table.add_row(part.name, f"{part.parameters:,}", part.dtypes, _bytes(part.stored_bytes))
    total = sum(part.stored_bytes for part in found.parts)
    table.add_row("all", f"{found.parameters:,}", "", _bytes(total), style="bold")
    for dtype in (torch.bfloat16, torch.float32):
        needed = found.parameters * dtype.itemsize
        table.add_row(f"memory needed in {str(dtype).removeprefix('torch.')}", "", "", _bytes(needed))
    for column in table.columns[1::2]:
        column.justify = "right"
    return table


def _list_table(title: str, lines: list[str], style: str) -> Table:
    table = Table(title, header_style=style or None)
    for line in lines:
        table.add_row(Text(line))
    return table


def _bytes(count: int) -> str:
    if count == 0:
        return "0"
    exponent = min(3, int(math.log(count, 1000)))
    return f"{count / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB')[exponent]}"
