"""Compare this implementation with recorded numbers of the published one: the cases of a parity folder.

A case is a safetensors file of inputs and expected outputs; its metadata name the checkpoint and the variant.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightvla_core import published
from lightvla_core.checkpoint import STATISTICS_FILE, build_model, read_json
from lightvla_core.contract import ActionHead, Camera, Channel, PolicyContract, Pruning, Readout
from lightvla_core.errors import LightVLAError
from lightvla_core.finetuning.objective import Batch, Outcome, Randomness, compute_loss
from lightvla_core.model import diffusion, pruner
from lightvla_core.model.sequence import PLACEHOLDER, Sequence, TextInput
from lightvla_core.model.vla import LightVLA
from lightvla_core.normalization import Normalizer

TOLERANCE = 1e-4  # of a float tensor, relative to its largest absolute value
CHAIN_TOLERANCE = 2e-4  # of what comes out of several denoising steps

_EXPECTED = ("mid.", "out.", "aligned.", "grad", "input.proprio_normalized")


@dataclass(frozen=True)
class Case:
    """One file: its metadata and tensors."""

    name: str
    folder: Path
    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def input(self, name: str) -> Tensor | None:
        return self.tensors.get(f"input.{name}")

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.input(name)
        if tensor is None:
            raise LightVLAError(f"case {self.name} lacks the tensor input.{name}")
        return tensor


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case. Errors are None where nothing was computed for it (not supported)."""

    case: str
    quantity: str
    absolute: float | None
    relative: float | None
    passed: bool | None


def find_cases(folder: Path) -> list[Path]:
    files = sorted((folder / "cases").glob("*.safetensors"))
    if not files:
        raise LightVLAError(f"{folder} holds no parity case; expected files in {folder / 'cases'} named *.safetensors")
    return files


def read_case(path: Path) -> Case:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise LightVLAError(
            f"{path} is not a parity case ({error}); expected safetensors with a `meta` header"
        ) from None
    return Case(path.name.removesuffix(".safetensors"), path.parent.parent, meta, tensors)


def run_case(case: Case) -> Iterator[Comparison]:
    """Compute everything that the case expects and compare it; what this code does not compute comes as unsupported."""
    computed = _runner(case)(case)
    for name in sorted(case.tensors):
        if not name.startswith(_EXPECTED):
            continue
        value = computed.get(name)
        if value is None:
            yield Comparison(case.name, name, None, None, None)
        else:
            yield _compare(case.name, name, value, case.tensors[name], tolerance(case, name))


def tolerance(case: Case, name: str) -> float:
    """The wider one is for what several denoising steps produce; mid.* is of the first step, but for one tensor."""
    if case.meta.get("head") != "diffusion" or case.meta["diffusion_inference_steps"] == 1:
        return TOLERANCE
    chained = name.startswith(("out.", "aligned.")) or name == "mid.last_step_last_hidden"
    return CHAIN_TOLERANCE if chained else TOLERANCE


def _runner(case: Case) -> Callable[[Case], dict[str, Tensor]]:
    if "num_task_tokens" in case.meta:
        return _run_pruner
    return _run_training if "mode" in case.meta else _run_inference


def _compare(case: str, name: str, value: Tensor, golden: Tensor, tolerance: float) -> Comparison:
    value = value.detach()
    if value.shape != golden.shape:
        return Comparison(case, name, float("inf"), float("inf"), False)
    if not golden.is_floating_point():
        wrong = float((value.to(golden.dtype) != golden).sum())
        return Comparison(case, name, wrong, wrong / max(golden.numel(), 1), wrong == 0)
    absolute = float((value.double() - golden.double()).abs().max())
    largest = float(golden.double().abs().max())
    relative = absolute / largest if largest > 0 else absolute
    return Comparison(case, name, absolute, relative, relative <= tolerance)


# -- models


def _contract(case: Case) -> PolicyContract:
    """The contract that the case's metadata imply. Names carry no meaning here, only their number does."""
    meta = case.meta
    pixels = case["pixel_values"]
    action_dim, chunk = meta.get("action_dim"), meta.get("chunk")
    if action_dim is None or chunk is None:
        chunk, action_dim = case["actions"].shape[1:]
    proprio = case.input("proprio_raw") if case.input("proprio_raw") is not None else case.input("proprio")
    head = meta.get("head") or meta["mode"]
    return PolicyContract(
        robot=meta["platform"].lower(),
        cameras=tuple(Camera(f"image_{i}", *pixels.shape[-2:]) for i in range(meta["num_images"])),
        proprioception=_channels(proprio.shape[-1]) if meta["use_proprio"] and proprio is not None else (),
        actions=_channels(int(action_dim)),
        action_space="joint_position",
        chunk_length=int(chunk),
        control_rate=1.0,
        normalization=meta.get("normalization", "bounds"),
        statistics_key=meta.get("unnorm_key", ""),
        action_head=cast(ActionHead, head),
        film=meta["use_film"],
        pruning=Pruning(enabled=meta["variant"] == "lightvla", multiplicity="ignore", mask_padding=False),
    )


def _channels(count: int) -> tuple[Channel, ...]:
    return tuple(Channel(f"channel_{i}", "normalized") for i in range(count))


@lru_cache(maxsize=4)
def _model(folder: Path, name: str, lora: bool, contract: PolicyContract) -> LightVLA:
    checkpoint = folder / "checkpoints" / name
    config = published.read_model_config(checkpoint)
    tensors = published.read_tensors(checkpoint, contract, checkpoint / "lora_variant" if lora else None)
    return build_model(config, contract, tensors, checkpoint)


def _uses_lora_files(case: Case) -> bool:
    """Whether the case was recorded with the backbone file of lora_variant/; only its names and words tell."""
    return "_lora_" in case.name or "lora_variant" in case.meta.get("description", "")


def _case_model(case: Case) -> LightVLA:
    contract = _contract(case)
    model = _model(case.folder, case.meta["checkpoint"], _uses_lora_files(case), contract)
    model.contract = contract
    model.zero_grad(set_to_none=True)
    return model


# -- inference


def _run_inference(case: Case) -> dict[str, Tensor]:
    model = _case_model(case)
    text = _inference_text(case["input_ids"], model)
    proprio, out = None, dict[str, Tensor]()
    if model.proprio_projector is not None:
        normalized = _normalizer(case, model.contract).proprio.normalize(case["proprio_raw"].numpy())  # type: ignore[union-attr]
        out["input.proprio_normalized"] = torch.from_numpy(normalized)
        proprio = out["input.proprio_normalized"].float()[None]
    with torch.inference_mode():
        language = model._language_vector(text) if model.contract.film else None
        out["mid.patch_features"] = model.vision_backbone(case["pixel_values"], language)
        patches = out["mid.projected_patches"] = model.projector(out["mid.patch_features"])
        if model.contract.action_head == "diffusion":
            _run_denoising(case, model, model.assemble(patches, text, proprio), out)
        else:
            _run_single_step(case, model, model.assemble(patches, text, proprio), out)
    return out


def _inference_text(ids: Tensor, model: LightVLA) -> TextInput:
    """The prompt as recorded, made complete: the empty token, placeholders, STOP."""
    tokens = model.config.tokens
    if int(ids[0, -1]) != tokens.empty:
        ids = torch.cat((ids, ids.new_full((1, 1), tokens.empty)), dim=1)
    count = model.contract.chunk_length * len(model.contract.actions)
    slots = torch.cat((torch.zeros_like(ids), ids.new_ones(1, count), ids.new_zeros(1, 1)), dim=1).bool()
    ids = torch.cat((ids, ids.new_full((1, count), PLACEHOLDER), ids.new_full((1, 1), tokens.stop)), dim=1)
    return TextInput(ids, torch.ones_like(slots), slots)


def _record_pruning(model: LightVLA, sequence: Sequence, score: Tensor | None, out: dict[str, Tensor]) -> None:
    """score None where nothing is pruned"""
    out["mid.multimodal_embeddings"] = sequence.embeddings()
    votes = None
    if score is not None:
        votes = pruner.count_votes(score)
        out["mid.score"] = score
        out["mid.score_argmax"] = score.argmax(-1)
    selection = model.select(sequence, votes)
    out["mid.keep_mask"] = torch.ones_like(selection.positions, dtype=torch.bool) if votes is None else votes > 0
    out["mid.pruned_position_ids"] = sequence.positions(selection)
    layers: list[Tensor] = []
    model.run_language_model(sequence, selection, layers)
    out["mid.hidden_states"] = torch.cat(layers)


def _readouts(case: Case) -> dict[str, Readout]:
    """The published code's readout gives out.*; for LightVLA the one it was trained with gives aligned.*"""
    if case.meta["variant"] == "oft":
        return {"out.": "preceding"}
    return {"out.": "published_lightvla", "aligned.": "preceding"}


def _run_single_step(case: Case, model: LightVLA, sequence: Sequence, out: dict[str, Tensor]) -> None:
    _record_pruning(model, sequence, model.score(sequence) if model.contract.pruning.enabled else None, out)
    last = out["mid.hidden_states"][-1:]
    for prefix, readout in _readouts(case).items():
        model.contract = dataclasses.replace(model.contract, readout=readout)
        states = model.read_slots(last, sequence)
        out[f"{prefix}action_hidden_states"] = states
        if model.action_head is None:
            logits = model.language_model.lm_head(states)[0]
            tokens = model.config.tokens
            out[f"{prefix}predicted_token_ids"] = logits.argmax(-1)
            out[f"{prefix}logits_action_vocab"] = logits[:, tokens.action_end - tokens.num_bins : tokens.action_end]
        _record_actions(case, model, model.actions_from_states(states)[0], prefix, out)


def _record_actions(case: Case, model: LightVLA, normalized: Tensor, prefix: str, out: dict[str, Tensor]) -> None:
    out[f"{prefix}normalized_actions"] = normalized
    actions = _normalizer(case, model.contract).action.unnormalize(normalized.double().numpy())
    out[f"{prefix}actions"] = torch.from_numpy(actions)


def _run_denoising(case: Case, model: LightVLA, sequence: Sequence, out: dict[str, Tensor]) -> None:
    steps = int(case.meta["diffusion_inference_steps"])
    timesteps = diffusion.inference_timesteps(steps)
    out["mid.timesteps"] = torch.tensor(timesteps)
    score = model.repeated_score(sequence) if model.contract.pruning.enabled else None
    for prefix, readout in _readouts(case).items():
        model.contract = dataclasses.replace(model.contract, readout=readout)
        actions, per_step = case["noise"], list[dict[str, Tensor]]()
        for timestep in timesteps:
            sequence = model.insert_noise(sequence, actions, torch.tensor([timestep]))
            step: dict[str, Tensor] = {}
            _record_pruning(model, sequence, None if score is None else score(sequence.noisy_tokens), step)
            if not per_step:
                out.update(step)
            states = model.read_slots(step["mid.hidden_states"][-1:], sequence)
            noise = model.actions_from_states(states)
            actions = diffusion.denoise_step(actions, noise, timestep, steps)
            per_step.append({**step, "states": states, "noise": noise, "actions": actions})
        # The kept sets of the two readouts part after the first step, since their noisy actions do.
        out[f"{'mid.' if prefix == 'out.' else prefix}keep_mask_per_step"] = torch.cat(
            [step["mid.keep_mask"] for step in per_step]
        )
        if prefix == "out.":
            out["mid.last_step_last_hidden"] = per_step[-1]["mid.hidden_states"][-1:]
        out[f"{prefix}noise_pred_per_step"] = torch.cat([step["noise"] for step in per_step])
        out[f"{prefix}x_prev_per_step"] = torch.cat([step["actions"] for step in per_step])
        out[f"{prefix}action_hidden_states"] = per_step[-1]["states"]
        _record_actions(case, model, actions[0], prefix, out)


def _normalizer(case: Case, contract: PolicyContract) -> Normalizer:
    path = case.folder / "checkpoints" / case.meta["checkpoint"] / STATISTICS_FILE
    return Normalizer.from_statistics(read_json(path), contract, str(path))


# -- training


def _run_training(case: Case) -> dict[str, Tensor]:
    model = _case_model(case)
    noise, scale = case.input("uniform_noise"), case.meta.get("noise_scale")
    batch = Batch(
        case["pixel_values"],
        case["input_ids"],
        case["attention_mask"].bool(),
        case["labels"],
        case["actions"],
        case.input("proprio") if model.proprio_projector is not None else None,
    )
    randomness = Randomness(
        noise * scale if noise is not None and scale is not None else None,
        case.input("diffusion_noise"),
        case.input("diffusion_timesteps"),
    )
    features: list[Tensor] = []
    hook = model.vision_backbone.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    outcome = compute_loss(model, batch, randomness)
    hook.remove()
    outcome.loss.backward()
    out = _training_outputs(model, batch, outcome)
    out["mid.patch_features"] = features[0]
    out.update(_gradients(case, model))
    return out


def _training_outputs(model: LightVLA, batch: Batch, outcome: Outcome) -> dict[str, Tensor]:
    sequence, selection = outcome.sequence, outcome.selection
    states = model.read_slots(outcome.hidden, sequence)
    prefix = batch.mask.new_ones(len(batch.mask), sequence.embeddings().shape[1] - batch.mask.shape[1])
    slots = batch.labels >= model.config.tokens.action_end - model.config.tokens.num_bins
    out = {
        "mid.projected_patches": sequence.patches,
        "mid.multimodal_embeddings": sequence.embeddings(),
        "mid.multimodal_attention_mask": torch.cat((batch.mask[:, :1], prefix, batch.mask[:, 1:]), dim=1),
        "mid.selected_indices": selection.positions,
        "mid.selected_patches": selection.patches,
        "mid.pruned_position_ids": sequence.positions(selection),
        "mid.last_hidden_states": outcome.hidden,
        "mid.action_mask": slots[:, 1:],
        "mid.action_hidden_states": states,
        "out.loss": outcome.loss[None],
    }
    if model.contract.pruning.enabled:
        out["mid.score"] = model.score(sequence)
    if outcome.output is not None:
        out["out.head_output"] = outcome.output
    else:
        out["out.predicted_token_ids"] = model.language_model.lm_head(states).argmax(-1)
    return out


def _gradients(case: Case, model: LightVLA) -> dict[str, Tensor]:
    """Gradients under the names that the case uses for them."""
    parameters = dict(model.named_parameters())
    out = {}
    for name in case.tensors:
        kind, _, rest = name.partition(".")
        if kind == "grad":
            out[name] = _gradient(parameters, rest)
        elif kind == "grad_rows":
            parameter, _, what = rest.rpartition(".")
            gradient = _gradient(parameters, parameter)
            rows = gradient.abs().sum(1).nonzero()[:, 0]
            pad_is_zero = (gradient[model.config.tokens.pad] == 0).all()[None]
            out[name] = {"rows": rows, "values": gradient[rows], "pad_row_is_zero": pad_is_zero}[what]
    return out


def _gradient(parameters: Mapping[str, Tensor], published_name: str) -> Tensor:
    name = published_name.removeprefix("vla.").replace("vision_backbone.vision_backbone.", "vision_backbone.")
    gradient = parameters[published.rename(name)].grad
    assert gradient is not None
    return gradient


# -- the pruner alone


def _run_pruner(case: Case) -> dict[str, Tensor]:
    count = int(case.meta["num_patches"])
    tokens = case["tokens"].clone().requires_grad_(case.meta["mode"] == "train")
    patches, task = tokens[:, 1 : 1 + count], tokens[:, 1 + count :]
    score = pruner.score(patches, task)
    noise, scale = case.input("uniform_noise"), case.meta.get("noise_scale")
    noisy = score if noise is None or scale is None else score + noise * scale
    votes = pruner.count_votes(noisy)
    if case.meta["mode"] == "train":
        selection = pruner.replace_by_choice(patches, score, None if noisy is score else noisy - score)
    else:
        selection = pruner.keep_voted(patches, votes, weighted=False)
    kept = torch.cat((tokens[:, :1], selection.patches, task), dim=1)
    out = {"mid.score": score, "mid.argmax": noisy.argmax(-1), "mid.keep_mask": votes > 0, "out.tokens": kept}
    for name in ("position_ids", "attention_mask"):
        values = case[name]
        chosen = torch.take_along_dim(values[:, 1 : 1 + count], selection.positions, dim=1)
        out[f"out.{name}"] = torch.cat((values[:, :1], chosen, values[:, 1 + count :]), dim=1)
    if case.meta["mode"] == "train":
        (out["grad.tokens"],) = torch.autograd.grad((kept * case["grad_output"]).sum(), tokens)
    return out


# -- report


def tally(results: list[list[Comparison]]) -> tuple[int, int, int]:
    """How many quantities passed, failed, and are not supported."""
    outcomes = [comparison.passed for case in results for comparison in case]
    return outcomes.count(True), outcomes.count(False), outcomes.count(None)


def report(results: list[list[Comparison]], every_quantity: bool) -> Table:
    """A table with a row for each quantity, or for the worst one of each case (failures are always shown)."""
    table = Table("case", "quantity", "max abs error", "max rel error", "result")
    for case in results:
        shown = case if every_quantity else _worth_showing(case)
        for row in shown:
            if row.passed is None:
                table.add_row(row.case, row.quantity, "", "", "[yellow]not supported[/yellow]")
            else:
                verdict = "[green]pass[/green]" if row.passed else "[red]FAIL[/red]"
                table.add_row(row.case, row.quantity, f"{row.absolute:.1e}", f"{row.relative:.1e}", verdict)
    return table


def _worth_showing(case: list[Comparison]) -> list[Comparison]:
    remarkable = [row for row in case if not row.passed]
    passed = [row for row in case if row.passed]
    if not passed:
        return remarkable
    worst = max(passed, key=lambda row: row.relative or 0.0)
    return [*remarkable, dataclasses.replace(worst, quantity=f"{worst.quantity} (worst of {len(passed)})")]
