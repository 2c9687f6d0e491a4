"""Checkpoint folders of this package: config.json, contract.json, statistics, tokenizer and weights.

Also the one way by which tensors from any source enter a model. Published forms are translated in published.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightvla_core.contract import FILE_NAME as CONTRACT_FILE
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.model.config import ModelConfig
from lightvla_core.model.vla import LightVLA

CONFIG_FILE = "config.json"
STATISTICS_FILE = "dataset_statistics.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FORMAT = "lightvla/1"
SHARD_BYTES = 4 << 30


class NamedTensor(NamedTuple):
    """A tensor on its way into a model, and the file it came from (for error sentences)."""

    name: str
    tensor: Tensor
    file: Path


# -- reading


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> LightVLA:
    """Read a checkpoint folder of this package. Weights stream from disk to the device tensor by tensor."""
    require_folder(folder)
    config = read_config(folder)
    contract = PolicyContract.from_file(folder / CONTRACT_FILE)
    return build_model(config, contract, read_weights(folder), folder, device, dtype)


def require_folder(folder: Path) -> None:
    if folder.is_file():
        raise LightVLAError(f"checkpoint {folder} is a file, expected the folder that holds {CONFIG_FILE} and weights")
    if not folder.is_dir():
        raise LightVLAError(
            f"checkpoint {folder} does not exist; expected a folder that holds {CONFIG_FILE} and weights"
        )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise LightVLAError(f"cannot read {path} ({error.strerror}); is {path.parent} a complete checkpoint?") from None
    except ValueError as error:
        raise LightVLAError(f"{path} is not valid JSON ({error}); copy it again") from None


def read_config(folder: Path) -> ModelConfig:
    data = read_json(folder / CONFIG_FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LightVLAError(
            f"{folder} is not a checkpoint of this package (its {CONFIG_FILE} lacks format {FORMAT}); "
            "turn a published checkpoint into one with `lightvla import`"
        )
    return ModelConfig.from_dict(data["model"], str(folder / CONFIG_FILE))


def read_weights(folder: Path) -> Iterator[NamedTensor]:
    """Every tensor of model.safetensors, or of the shards that its index lists."""
    if (folder / INDEX_FILE).exists():
        shards = sorted(set(read_json(folder / INDEX_FILE)["weight_map"].values()))
    else:
        shards = [WEIGHTS_FILE]
    for shard in shards:
        yield from read_safetensors(folder / shard)


def read_safetensors(path: Path) -> Iterator[NamedTensor]:
    if not path.is_file():
        raise LightVLAError(f"weights {path} are missing; copy the whole checkpoint folder")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield NamedTensor(name, file.get_tensor(name), path)
    except SafetensorError as error:
        raise LightVLAError(f"{path} is truncated or not a safetensors file ({error}); copy it again") from None


def build_model(
    config: ModelConfig,
    contract: PolicyContract,
    tensors: Iterable[NamedTensor],
    source: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LightVLA:
    """A model in evaluation mode, filled from tensors that carry this package's names.

    Nothing is allocated before its tensor arrives. Raises LightVLAError naming file and tensor for a tensor that is
    unknown, of a wrong shape or not finite, and naming source for missing ones.
    """
    with torch.device("meta"):
        model = LightVLA(config, contract)
    missing = set(model.state_dict())
    for name, tensor, file in tensors:
        if name not in missing:
            raise LightVLAError(
                f"{file} holds the tensor {name}, for which the model of {source / CONFIG_FILE} has no place"
            )
        missing.remove(name)
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        expected = getattr(module, leaf)
        _check(tensor, name, file, expected.shape)
        tensor = tensor.to(device=device, dtype=dtype)
        setattr(module, leaf, nn.Parameter(tensor) if isinstance(expected, nn.Parameter) else tensor)
    if missing:
        first, *others = sorted(missing)
        more = f" and {len(others)} more" if others else ""
        raise LightVLAError(f"{source} lacks the tensor {first}{more}; is the checkpoint complete?")
    return model.eval()


def _check(tensor: Tensor, name: str, file: Path, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise LightVLAError(
            f"{file}: the tensor {name} has shape {tuple(tensor.shape)}, but the model expects {tuple(shape)}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise LightVLAError(f"{file}: the tensor {name} holds NaN or infinite values; the checkpoint is damaged")


# -- writing


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    contract: PolicyContract,
    statistics: dict[str, Any],
    tokenizer_json: str,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint folder, whole or not at all: it is built beside its place and renamed."""
    with new_folder(folder) as partial:
        header = {"format": FORMAT, "model": config.to_dict()}
        (partial / CONFIG_FILE).write_text(json.dumps(header, indent=2) + "\n")
        (partial / CONTRACT_FILE).write_text(contract.to_json())
        (partial / STATISTICS_FILE).write_text(json.dumps(statistics, indent=2) + "\n")
        (partial / TOKENIZER_FILE).write_text(tokenizer_json)
        write_weights(partial, tensors, shard_bytes)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only once its content is complete."""
    if folder.exists():
        raise LightVLAError(f"{folder} exists already; name a new folder or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise LightVLAError(f"cannot write {folder} ({error.strerror}); name a folder you may write to") from None
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """One safetensors file, or, beyond shard_bytes, numbered shards and their index."""
    shards: list[dict[str, str]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        file = f"model-{len(shards) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        shards.append(dict.fromkeys(shard, file))

    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if shard and size + bytes_ > shard_bytes:
            flush()
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += bytes_
        total += bytes_
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / WEIGHTS_FILE)
        return
    weight_map = {name: file for part in shards for name, file in part.items()}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
