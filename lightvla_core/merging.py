"""`lightvla merge-lora`: a checkpoint folder and an adapter, made into a folder of the same form.

The arithmetic of an adapter is in lora.py; merging on load and on import are in checkpoint.py and published.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from lightvla_core import lora, published
from lightvla_core.checkpoint import CONFIG_FILE, CONTRACT_FILE, read_own_adapter
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import is_own_format, new_folder, require_folder
from lightvla_core.weights import (
    SHARD_BYTES,
    Progress,
    StoredTensor,
    TensorSpec,
    check_finite,
    is_weight_file,
    list_weights,
    write_weights,
)


def merge_folder(
    base: Path,
    adapter_folder: Path,
    destination: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write base with the adapter merged into it, in the form and types that base has; returns the merged matrices.

    adapter_folder: the adapter, or the training run's folder that holds it as lora_adapter/; what else lies in the
        run's folder (statistics, action head, tokenizer ...) replaces what base has of it
    """
    for folder in (base, adapter_folder):
        require_folder(folder)
    if (adapter_folder / lora.FOLDER).is_dir():
        adapter_folder = adapter_folder / lora.FOLDER
    run = adapter_folder.parent if adapter_folder.name == lora.FOLDER else None
    tensors = list_weights(base)
    if is_own_format(base):
        files, adapter = _own_files(base, run), read_own_adapter(adapter_folder, base)
    else:
        files, adapter = _published_files(base, run), lora.read_adapter(adapter_folder)
        adapter = _without_replaced_backbone(adapter, files, tensors)
    merged = lora.merge(adapter, tensors)
    layout = {tensor.name: TensorSpec(tensor.dtype, tensor.shape) for tensor in merged}
    with new_folder(destination) as partial:
        write_weights(partial, layout, (_checked(tensor) for tensor in merged), shard_bytes, progress)
        for name, path in files.items():
            _copy(path, partial / name)
    return len(adapter.updates)


def _own_files(base: Path, run: Path | None) -> dict[str, Path]:
    """What lies beside the weights, by name: the run's files, except what says which model base is."""
    if run is None:
        return _plain_files(base)
    side = next((path for part in published.SIDE_FILES for path in published.find_side_files(run, part)), None)
    if side is not None:
        raise LightVLAError(
            f"{side} was trained with the adapter, but {base} is a checkpoint of this package, which has no place for "
            "it; merge into the published base, then import"
        )
    return _plain_files(base) | {n: p for n, p in _plain_files(run).items() if n not in (CONFIG_FILE, CONTRACT_FILE)}


def _published_files(base: Path, run: Path | None) -> dict[str, Path]:
    """What lies beside the weights, by name: a side file of the run replaces base's of that part, whatever its step."""
    files = _plain_files(base)
    if run is None:
        return files
    for part in published.SIDE_FILES:
        if published.find_side_files(run, part):
            for path in published.find_side_files(base, part):
                files.pop(path.name, None)
    return files | _plain_files(run)


def _plain_files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.is_file() and not is_weight_file(path)}


def _without_replaced_backbone(
    adapter: lora.Adapter, files: dict[str, Path], tensors: list[StoredTensor]
) -> lora.Adapter:
    """A vision_backbone side file holds the trained backbone whole, under FiLM's names, which base does not know."""
    if not any("vision_backbone" in name and "checkpoint" in name for name in files):
        return adapter
    names = {tensor.name for tensor in tensors}
    return adapter.only(lambda name: name in names or not name.startswith("vision_backbone."))


def _checked(tensor: StoredTensor) -> tuple[str, Tensor]:
    value = tensor.load()
    check_finite(value, tensor.name, tensor.file)
    return tensor.name, value


def _copy(path: Path, destination: Path) -> None:
    try:
        source = path.open("rb")
    except OSError as error:
        raise LightVLAError(f"cannot read {path} ({error.strerror}); may you read it?") from None
    with source, destination.open("wb") as target:
        shutil.copyfileobj(source, target)
