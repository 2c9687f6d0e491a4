"""A published checkpoint, and what the user says about it, turned into a checkpoint folder of this package.

Decides what neither weights nor config tell; reading the published forms is in published.py. Prints nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer
from torch import Tensor

from lightvla_core import published
from lightvla_core.checkpoint import (
    STATISTICS_FILE,
    TOKENIZER_FILE,
    check_listed,
    checked,
    model_shapes,
    save_checkpoint,
)
from lightvla_core.contract import OPENVLA_PROMPT, ActionHead, Multiplicity, PolicyContract, Pruning, Readout
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import CONFIG_FILE, is_own_format, read_json, require_folder
from lightvla_core.model.config import ModelConfig
from lightvla_core.normalization import Normalizer, check_statistics, find_key
from lightvla_core.resources import resource
from lightvla_core.weights import SHARD_BYTES, Progress, StoredTensor, all_finite

Variant = Literal["openvla", "oft", "lightvla"]
HeadChoice = Literal["auto", "l1", "diffusion", "discrete"]
DtypeChoice = Literal["source", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CROPPED, _UNCROPPED = 0.9, 1.0
_ROBOT_FILES = "config/contracts"
_READOUT_REASON = {
    "preceding": "the token before each action slot, as trained",
    "published_lightvla": "two positions later, as LightVLA's published inference reads",
}
_MULTIPLICITY_REASON = {
    "ignore": "a kept patch counts once, as in the published inference (weighted: as in training)",
    "weighted": "a kept patch counts as often as it was voted for, as in training",
}
MISSING = "missing"
SENTENCEPIECE_FILE = "tokenizer.model"


@dataclass(frozen=True)
class ImportOptions:
    """What a published checkpoint does not carry. None: as the robot's file, or the files found, say.

    robot: libero, aloha, franka, bridge, or the path of a YAML file or contract.json with the contract's robot fields
    unnorm_key: the entry of the statistics; needed when there are several
    cameras: their names, in the order of training
    control_rate: Hz
    """

    variant: Variant
    robot: str
    unnorm_key: str | None = None
    cameras: tuple[str, ...] = ()
    proprio: bool | None = None
    head: HeadChoice = "auto"
    film: bool | None = None
    readout: Readout | None = None
    multiplicity: Multiplicity | None = None
    center_crop: bool | None = None
    control_rate: float | None = None
    dtype: DtypeChoice = "source"
    tokenizer: Path | None = None
    adapter: published.MergeAdapter = "auto"


class Decision(NamedTuple):
    """One thing that the import sets, and why."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class ImportPlan:
    """Everything that will be written, known and checked before anything is, except the weights' values."""

    source: Path
    config: ModelConfig
    contract: PolicyContract
    statistics: dict[str, Any]
    tokenizer_json: str | None
    tensors: list[StoredTensor]
    dtypes: dict[str, torch.dtype]
    decisions: list[Decision]


def plan_import(source: Path, options: ImportOptions) -> ImportPlan:
    """Decide and check. Raises LightVLAError, in one sentence, for what is damaged, contradictory or not said."""
    require_folder(source)
    published.refuse_lone_adapter(source)
    if is_own_format(source):
        raise LightVLAError(f"{source} is a checkpoint of this package already; it needs no import")
    config = published.read_model_config(source)
    decisions: list[Decision] = []
    statistics, statistics_file = read_statistics(source)
    contract = _decide_contract(source, options, config, statistics, statistics_file, decisions)
    Normalizer.from_statistics(statistics, contract, str(statistics_file))
    adapter, reason = published.find_adapter(source, options.adapter)
    decisions.append(Decision("LoRA adapter", "merged in" if adapter else "none to merge", reason))
    tensors = published.list_model_tensors(source, contract, adapter=adapter)
    check_listed(tensors, model_shapes(config, contract), source)
    dtypes = {t.name: t.dtype if options.dtype == "source" else _DTYPES[options.dtype] for t in tensors}
    kinds = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()})
    decisions.append(Decision("weights", ", ".join(kinds), f"--dtype {options.dtype}"))
    tokenizer = _read_tokenizer(source, options.tokenizer, config, decisions)
    return ImportPlan(source, config, contract, statistics, tokenizer, tensors, dtypes, decisions)


def write_import(
    plan: ImportPlan, destination: Path, shard_bytes: int = SHARD_BYTES, progress: Progress = lambda done, total: None
) -> None:
    """Write the folder, whole or not at all. Tensors pass one at a time; a NaN in one ends it all."""
    save_checkpoint(
        destination,
        plan.config,
        plan.contract,
        plan.statistics,
        plan.tokenizer_json,
        _read_checked(plan),
        shard_bytes,
        plan.dtypes,
        progress,
    )


def _read_checked(plan: ImportPlan) -> Iterator[tuple[str, Tensor]]:
    shapes = model_shapes(plan.config, plan.contract)
    for name, tensor, file in checked((stored.read() for stored in plan.tensors), shapes, plan.source):
        converted = tensor.to(plan.dtypes[name])
        if not all_finite(converted):
            kind = str(converted.dtype).removeprefix("torch.")
            raise LightVLAError(f"{file}: the tensor {name} has values beyond the range of {kind}; use another --dtype")
        yield name, converted


# -- the contract


def read_robot(robot: str) -> dict[str, Any]:
    """The contract's robot fields, of a known robot or from a YAML or JSON file, each of the contract's type."""
    known = _known_robots()
    path = resource(f"{_ROBOT_FILES}/{robot}.yaml") if robot in known else Path(robot)
    if not path.is_file():
        raise LightVLAError(
            f"unknown robot {robot!r}; known are {', '.join(known)}, or give the path of a YAML file or contract.json"
        )
    try:
        text = json.dumps(yaml.safe_load(path.read_text()), default=str)
    except (yaml.YAMLError, ValueError, TypeError, OSError) as error:
        raise LightVLAError(f"{path} is neither valid YAML nor JSON ({str(error).splitlines()[0]})") from None
    data = json.loads(text)
    if not isinstance(data, dict):
        raise LightVLAError(f"{path} does not describe a robot: expected the fields of a contract")
    # The checkpoint decides the key; all else must make a contract already.
    PolicyContract.from_json(json.dumps({"statistics_key": "any", **data}), str(path))
    return data


def _known_robots() -> list[str]:
    return sorted(path.stem for path in resource(_ROBOT_FILES).glob("*.yaml"))


def _decide_contract(
    source: Path,
    options: ImportOptions,
    config: ModelConfig,
    statistics: dict[str, Any],
    statistics_file: Path,
    decisions: list[Decision],
) -> PolicyContract:
    fields = read_robot(options.robot)
    _decide_variant(options, fields, decisions)
    _decide_side_files(source, options, fields, decisions)
    _decide_prompt(source, options, fields, decisions)
    fields["cameras"] = _decide_cameras(options, config, fields["cameras"], decisions)
    if options.control_rate is not None:
        fields["control_rate"] = options.control_rate
    fields["statistics_key"] = _decide_key(options, fields, statistics, statistics_file, decisions)
    contract = PolicyContract.from_json(json.dumps(fields), f"the contract from --robot {options.robot}")
    decisions += [
        Decision("robot", contract.robot, f"{len(contract.actions)} actions, --robot {options.robot}"),
        Decision("normalization", contract.normalization, f"--robot {options.robot}"),
        Decision("chunk", f"{contract.chunk_length} @ {contract.control_rate:g} Hz", "the variant and the robot"),
    ]
    return contract


def _decide_variant(options: ImportOptions, fields: dict[str, Any], decisions: list[Decision]) -> None:
    _refuse_without_effect(options)
    variant, causal = f"--variant {options.variant}", options.variant == "openvla"
    if causal:
        fields["chunk_length"] = 1
    fields["attention"] = "causal" if causal else "bidirectional"
    pruning = {**asdict(Pruning()), **fields.get("pruning", {})}
    pruning["enabled"] = options.variant == "lightvla"
    pruning["multiplicity"] = options.multiplicity or pruning["multiplicity"]
    fields["pruning"] = pruning
    fields["readout"] = options.readout or ("preceding" if causal else fields.get("readout", "preceding"))
    attention_reason = "it writes its action tokens one by one" if causal else "as trained"
    decisions += [
        Decision("attention", fields["attention"], f"{variant}: {attention_reason}"),
        Decision("pruner", "on" if pruning["enabled"] else "off", f"{variant}: only LightVLA prunes"),
    ]
    if not causal:
        decisions.append(Decision("readout", fields["readout"], _READOUT_REASON[fields["readout"]]))
    if pruning["enabled"]:
        kind = pruning["multiplicity"]
        decisions.append(Decision("multiplicity", kind, _MULTIPLICITY_REASON[kind]))


def _refuse_without_effect(options: ImportOptions) -> None:
    for option, value, variants in (
        ("--multiplicity", options.multiplicity, ("lightvla",)),
        ("--readout", options.readout, ("oft", "lightvla")),
    ):
        if value is not None and options.variant not in variants:
            raise LightVLAError(
                f"{option} has no effect with --variant {options.variant}, only with {' or '.join(variants)}; "
                "leave it out"
            )


def _decide_prompt(source: Path, options: ImportOptions, fields: dict[str, Any], decisions: list[Decision]) -> None:
    prompt, reason = published.read_prompt(source)
    if fields.get("prompt_template", OPENVLA_PROMPT) != OPENVLA_PROMPT:
        prompt, reason = fields["prompt_template"], f"--robot {options.robot}"
    fields["prompt_template"] = prompt
    decisions.append(Decision("prompt", repr(prompt), reason))


def _decide_side_files(source: Path, options: ImportOptions, fields: dict[str, Any], decisions: list[Decision]) -> None:
    head, head_reason = detect_head(source) if options.head == "auto" else (options.head, f"--head {options.head}")
    film, film_reason = _found_or_said(source, "vision_backbone", options.film, "film")
    proprio, proprio_reason = _found_or_said(source, "proprio_projector", options.proprio, "proprio")
    if options.variant == "openvla" and (head != "discrete" or film or proprio):
        what, reason = next(
            (what, reason)
            for what, wrong, reason in (
                (f"action head of kind {head}", head != "discrete", head_reason),
                ("FiLM", film, film_reason),
                ("proprioception", proprio, proprio_reason),
            )
            if wrong
        )
        raise LightVLAError(
            f"--variant openvla has no {what} ({reason}, in {source}); use --variant oft or --variant lightvla"
        )
    fields["action_head"], fields["film"] = head, film
    proprioception = fields["proprioception"]
    if proprio and not proprioception:
        raise LightVLAError(f"--robot {options.robot} names no proprioception, but there is some: {proprio_reason}")
    fields["proprioception"] = proprioception if proprio else []
    decisions += [
        Decision("action head", head, head_reason),
        Decision("FiLM", "on" if film else "off", film_reason),
        Decision("proprioception", f"{len(fields['proprioception'])} numbers" if proprio else "off", proprio_reason),
    ]


def detect_head(source: Path) -> tuple[ActionHead, str]:
    """The action head that the side files imply, and why."""
    found = published.find_side_files(source, "action_head")
    if not found:
        return "discrete", "no action_head file"
    path = published.find_side_file(source, "action_head")
    names = [tensor.name for tensor in published.list_side_file(path)]
    kind: ActionHead = "diffusion" if any(name.startswith("noise_predictor.") for name in names) else "l1"
    return kind, f"the tensors of {path.name}"


def _found_or_said(source: Path, part: str, said: bool | None, option: str) -> tuple[bool, str]:
    if said is not None:
        return said, f"--{option}" if said else f"--no-{option}"
    found = published.find_side_files(source, part)
    return bool(found), f"{found[0].name} is there" if found else f"no {part} file"


def _decide_cameras(
    options: ImportOptions, config: ModelConfig, described: list[dict[str, Any]], decisions: list[Decision]
) -> list[dict[str, Any]]:
    """The named cameras, or the robot's (OpenVLA's only one: its first), at the size that the towers take."""
    by_name = {camera["name"]: camera for camera in described}
    if options.cameras:
        # A name that the robot's file does not know gets the treatment of its first camera.
        chosen = [{**by_name.get(name, described[0]), "name": name} for name in options.cameras]
        reason = "--cameras"
    elif options.variant == "openvla":
        chosen, reason = [dict(described[0])], "OpenVLA sees one; the first of the robot's"
    else:
        chosen, reason = [dict(camera) for camera in described], f"all of --robot {options.robot}; see --cameras"
    size = config.towers[0].image_size
    for camera in chosen:
        for side in ("height", "width"):
            if camera.setdefault(side, size) != size:
                raise LightVLAError(
                    f"camera {camera['name']} of --robot {options.robot} has {side} {camera[side]}, but the "
                    f"checkpoint's towers take {size} px"
                )
        if options.center_crop is not None:
            camera["crop_area"] = _CROPPED if options.center_crop else _UNCROPPED
    decisions.append(Decision("cameras", ", ".join(camera["name"] for camera in chosen), reason))
    areas = sorted({camera.get("crop_area", _UNCROPPED) for camera in chosen})
    why = f"--robot {options.robot}" if options.center_crop is None else "as asked for"
    decisions.append(Decision("images", f"{size} px, crop {', '.join(f'{area:g}' for area in areas)}", why))
    return chosen


# -- statistics and tokenizer


def read_statistics(source: Path) -> tuple[dict[str, Any], Path]:
    """dataset_statistics.json, or else norm_stats of config.json; and the file they came from."""
    path = source / STATISTICS_FILE
    if path.is_file():
        statistics = read_json(path)
    else:
        path = source / CONFIG_FILE
        config = read_json(path)
        statistics = config.get("norm_stats") if isinstance(config, dict) else None
    if not statistics:
        raise LightVLAError(
            f"{source} has no statistics to un-normalize actions with: neither {STATISTICS_FILE} nor norm_stats in "
            f"{CONFIG_FILE}; copy {STATISTICS_FILE} of the training run there"
        )
    return check_statistics(statistics, str(path)), path


def _decide_key(
    options: ImportOptions, fields: dict[str, Any], statistics: dict[str, Any], file: Path, decisions: list[Decision]
) -> str:
    described = fields.get("statistics_key")
    if options.unnorm_key:
        key, reason = find_key(statistics, options.unnorm_key, str(file)), f"--unnorm-key {options.unnorm_key}"
    elif described in statistics:
        key, reason = described, f"named by --robot {options.robot}"
    elif len(statistics) == 1:
        key, reason = next(iter(statistics)), "the only ones there"
    else:
        raise LightVLAError(f"{file} has statistics for {', '.join(statistics)}; choose one with --unnorm-key")
    reason += f" ({file.name})"
    # Robots with as many joints cannot be told apart by the numbers.
    others = [robot for robot in _known_robots() if robot in key.lower()]
    if others and fields["robot"] in _known_robots() and fields["robot"] not in others:
        reason += f"; the name says {', '.join(others)}, but the robot is {fields['robot']}: are they meant?"
    decisions.append(Decision("statistics", key, reason))
    return key


def _read_tokenizer(source: Path, chosen: Path | None, config: ModelConfig, decisions: list[Decision]) -> str | None:
    """tokenizer.json as text, converted from tokenizer.model where that is all there is; None without either."""
    candidates = [chosen] if chosen else [source / TOKENIZER_FILE, source / SENTENCEPIECE_FILE]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        if chosen:
            raise LightVLAError(f"the tokenizer {chosen} does not exist; expected tokenizer.json or tokenizer.model")
        hint = f"put {TOKENIZER_FILE} of Llama-2 into the new folder, or import again with --tokenizer"
        decisions.append(Decision("tokenizer", MISSING, f"{source.name} holds none; {hint}"))
        return None
    try:
        text = path.read_text() if path.suffix == ".json" else _convert_sentencepiece(path)
        size = Tokenizer.from_str(text).get_vocab_size()
    except LightVLAError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise LightVLAError(f"{path} is not a tokenizer ({error}); copy it again") from None
    if size > config.llama.vocab_size:
        raise LightVLAError(
            f"{path} has {size} tokens, but the model knows {config.llama.vocab_size}; is it another model's?"
        )
    how = "copied" if path.suffix == ".json" else f"converted from {path.name}"
    decisions.append(Decision("tokenizer", how, str(path)))
    return text


def _convert_sentencepiece(path: Path) -> str:
    """The text of tokenizer.json, from Llama's tokenizer.model."""
    try:
        from transformers import LlamaTokenizerFast

        # Alone in a folder, so that nothing else there takes part.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / SENTENCEPIECE_FILE).write_bytes(path.read_bytes())
            return str(LlamaTokenizerFast.from_pretrained(folder).backend_tokenizer.to_str())
    except Exception:  # whatever is missing or damaged, the remedy is the same
        raise LightVLAError(
            f"{path} could not be converted to {TOKENIZER_FILE}; install sentencepiece (pip install sentencepiece "
            f"protobuf), or save {TOKENIZER_FILE} beside it"
        ) from None


def render(decisions: list[Decision]) -> Table:
    table = Table("what", "is set to", "because")
    for decision in decisions:
        table.add_row(*map(Text, decision), style="yellow" if decision.value == MISSING else None)
    return table
