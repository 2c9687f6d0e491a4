"""Checkpoint folders of this package: config.json, contract.json, statistics, tokenizer and weights.

Also the one way by which tensors from any source enter a model. Weight files themselves are read and written in
weights.py; published forms are translated in published.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightvla_core import lora, published
from lightvla_core.contract import FILE_NAME as CONTRACT_FILE
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import CONFIG_FILE, new_folder, read_json, require_folder
from lightvla_core.model.config import ModelConfig
from lightvla_core.model.vla import LightVLA
from lightvla_core.weights import (
    SHARD_BYTES,
    WEIGHTS_FILE,
    NamedTensor,
    Progress,
    StoredTensor,
    TensorSpec,
    check_finite,
    list_weights,
    write_weights,
)

__all__ = [
    "CONFIG_FILE",
    "CONTRACT_FILE",
    "STATISTICS_FILE",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "NamedTensor",
    "build_model",
    "check_cameras",
    "list_model_weights",
    "load_model",
    "model_shapes",
    "new_folder",
    "read_config",
    "read_json",
    "read_own_adapter",
    "require_folder",
    "save_checkpoint",
]

STATISTICS_FILE = "dataset_statistics.json"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = "lightvla/1"


# -- reading


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> LightVLA:
    """Read a checkpoint folder of this package; an adapter in its lora_adapter/ is merged into the weights.

    Weights go from disk to the device tensor by tensor: host memory holds the model (on a CPU) and one tensor more.
    """
    require_folder(folder)
    config = read_config(folder)
    contract = PolicyContract.from_file(folder / CONTRACT_FILE)
    check_cameras(config, contract, folder)
    tensors = (tensor.read() for tensor in list_model_weights(folder))
    return build_model(config, contract, tensors, folder, device, dtype)


def list_model_weights(folder: Path) -> list[StoredTensor]:
    """The weights of a folder of this package, with those of lora_adapter/ merged in where there is one."""
    tensors = list_weights(folder)
    if (folder / lora.FOLDER).is_dir():
        tensors = lora.merge(read_own_adapter(folder / lora.FOLDER, folder), tensors)
    return tensors


def read_own_adapter(adapter_folder: Path, folder: Path) -> lora.Adapter:
    """An adapter for a folder of this package, without what it says of weights that import leaves out."""
    unused = published.unused_weights(read_config(folder))
    return lora.read_adapter(adapter_folder).only(lambda name: not unused(name))


def check_cameras(config: ModelConfig, contract: PolicyContract, folder: Path) -> None:
    """Raises LightVLAError for a camera whose images the vision towers do not take."""
    size = config.towers[0].image_size
    for camera in contract.cameras:
        if (camera.height, camera.width) != (size, size):
            raise LightVLAError(
                f"{folder / CONTRACT_FILE}: camera {camera.name} has {camera.height}x{camera.width} px, but the vision "
                f"towers of {CONFIG_FILE} take {size}x{size}; correct the contract"
            )


def read_config(folder: Path) -> ModelConfig:
    data = read_json(folder / CONFIG_FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LightVLAError(
            f"{folder} is not a checkpoint of this package (its {CONFIG_FILE} lacks format {FORMAT}); "
            "turn a published checkpoint into one with `lightvla import`"
        )
    return ModelConfig.from_dict(data.get("model"), str(folder / CONFIG_FILE))


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
    model = _empty_model(config, contract)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor, _ in checked(tensors, shapes, source):
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        value = tensor.to(device=device, dtype=dtype)
        setattr(module, leaf, nn.Parameter(value) if isinstance(getattr(module, leaf), nn.Parameter) else value)
    return model.eval()


def _empty_model(config: ModelConfig, contract: PolicyContract) -> LightVLA:
    with torch.device("meta"):
        return LightVLA(config, contract)


def model_shapes(config: ModelConfig, contract: PolicyContract) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a checkpoint of this model and contract holds."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_model(config, contract).state_dict().items()}


def checked(
    tensors: Iterable[NamedTensor], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> Iterator[NamedTensor]:
    """The same tensors, once each is known to be expected, of the right shape and finite, and none is missing."""
    seen: set[str] = set()
    for name, tensor, file in tensors:
        _check_place(name, tuple(tensor.shape), file, shapes, seen, source)
        check_finite(tensor, name, file)
        yield NamedTensor(name, tensor, file)
    _check_complete(seen, shapes, source)


def check_listed(tensors: Iterable[StoredTensor], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """What `checked` checks, except the values: without reading any."""
    seen: set[str] = set()
    for tensor in tensors:
        _check_place(tensor.name, tensor.shape, tensor.file, shapes, seen, source)
    _check_complete(seen, shapes, source)


def _check_place(
    name: str, shape: tuple[int, ...], file: Path, shapes: Mapping[str, tuple[int, ...]], seen: set[str], source: Path
) -> None:
    if name not in shapes:
        raise LightVLAError(
            f"{file} holds the tensor {name}, for which the model of {source / CONFIG_FILE} has no place"
        )
    if name in seen:
        raise LightVLAError(f"{file} holds the tensor {name}, which another file holds too; remove one of them")
    if shape != shapes[name]:
        raise LightVLAError(f"{file}: the tensor {name} has shape {shape}, but the model expects {shapes[name]}")
    seen.add(name)


def _check_complete(seen: set[str], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    missing = sorted(set(shapes) - seen)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LightVLAError(f"{source} lacks the tensor {missing[0]}{more}; is the checkpoint complete?")


# -- writing


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    contract: PolicyContract,
    statistics: dict[str, Any],
    tokenizer_json: str | None,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
    dtypes: Mapping[str, torch.dtype] | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a checkpoint folder, whole or not at all: it is built beside its place and renamed.

    tensors: every tensor of the model, in any order; one at a time is in memory
    dtypes: as which type each is stored, float32 where it says nothing
    tokenizer_json: None leaves the tokenizer out; such a folder predicts only once it has one
    """
    layout = {
        name: TensorSpec((dtypes or {}).get(name, torch.float32), shape)
        for name, shape in model_shapes(config, contract).items()
    }
    with new_folder(folder) as partial:
        header = {"format": FORMAT, "model": config.to_dict()}
        (partial / CONFIG_FILE).write_text(json.dumps(header, indent=2) + "\n")
        (partial / CONTRACT_FILE).write_text(contract.to_json())
        (partial / STATISTICS_FILE).write_text(json.dumps(statistics, indent=2) + "\n")
        if tokenizer_json is not None:
            (partial / TOKENIZER_FILE).write_text(tokenizer_json)
        write_weights(partial, layout, tensors, shard_bytes, progress)
