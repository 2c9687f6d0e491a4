"""Weight files, one tensor at a time: safetensors read and written, torch's .bin and .pt read.

Knows nothing of models: names are whatever the files say. No tensor is in memory before it is asked for.
"""

from __future__ import annotations

import json
import math
import pickle
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor

from lightvla_core.errors import LightVLAError
from lightvla_core.folders import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30

_TORCH_WEIGHTS_FILE = "pytorch_model.bin"
_TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100 << 20
_TORCH_BEGINNINGS = (b"PK", b"\x80")  # of a zip archive, and of the bare pickle that older versions write
_CHUNK = 1 << 20  # elements that are checked at once

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class NamedTensor(NamedTuple):
    """A tensor on its way into a model, and the file it came from (for error sentences)."""

    name: str
    tensor: Tensor
    file: Path


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file; load() reads it, into memory of its own."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    load: Callable[[], Tensor]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self) -> NamedTensor:
        return NamedTensor(self.name, self.load(), self.file)


def all_finite(tensor: Tensor) -> bool:
    # In pieces: a whole tensor's comparison would need as much memory again.
    return all(bool(piece.isfinite().all()) for piece in tensor.reshape(-1).split(_CHUNK))


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    if not all_finite(tensor):
        raise LightVLAError(f"{file}: the tensor {name} holds NaN or infinite values; the checkpoint is damaged")


# -- folders


def has_weights(folder: Path) -> bool:
    return any((folder / file).exists() for file in (INDEX_FILE, WEIGHTS_FILE, _TORCH_INDEX_FILE, _TORCH_WEIGHTS_FILE))


def is_weight_file(path: Path) -> bool:
    """Whether a file of a checkpoint folder is weights, a shard of them, or their index."""
    name = path.name
    return name.endswith((".safetensors", ".index.json")) or (name.startswith("pytorch_model") and ".bin" in name)


def list_weights(folder: Path) -> list[StoredTensor]:
    """Every tensor of a Hugging Face layout, file by file: safetensors before .bin, sharded or not.

    Raises LightVLAError for a missing or truncated file, and where an index and its shards contradict each other.
    """
    for index, single in ((INDEX_FILE, WEIGHTS_FILE), (_TORCH_INDEX_FILE, _TORCH_WEIGHTS_FILE)):
        if (folder / index).exists():
            return _list_shards(folder / index)
        if (folder / single).exists():
            return list_tensors(folder / single)
    raise LightVLAError(
        f"{folder} holds no weights: neither {WEIGHTS_FILE}, nor {_TORCH_WEIGHTS_FILE}, nor the index of their shards; "
        "copy the whole checkpoint folder"
    )


def _list_shards(index: Path) -> list[StoredTensor]:
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(_is_plain_name(file) for file in weight_map.values()):
        raise LightVLAError(f"{index} has no weight_map from tensor names to files beside it; copy it again")
    tensors = []
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if not path.is_file():
            raise LightVLAError(f"{index} names the shard {file}, which is missing; copy the whole checkpoint folder")
        listed = list_tensors(path)
        absent = {name for name, place in weight_map.items() if place == file} - {tensor.name for tensor in listed}
        if absent:
            raise LightVLAError(f"{path} lacks the tensor {min(absent)}, which {index.name} says it holds")
        tensors += listed
    return tensors


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file


def list_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of one file, of either kind, in the order in which they lie there."""
    if not path.is_file():
        raise LightVLAError(f"weights {path} are missing; copy the whole checkpoint folder")
    return _list_safetensors(path) if path.suffix == ".safetensors" else _list_torch(path)


# -- safetensors: eight bytes of header length, a JSON header, then the bytes of every tensor


def _list_safetensors(path: Path) -> list[StoredTensor]:
    damaged = f"{path} is truncated or not a safetensors file"
    file_size = path.stat().st_size
    with _open(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, file_size - 8):
            raise LightVLAError(f"{damaged} (its header is incomplete); copy it again")
        entries = _parse_header(file.read(length), damaged)
    tensors = []
    for name, entry in entries.items():
        (begin, end), dtype, shape = entry["data_offsets"], _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise LightVLAError(f"{path}: the tensor {name} has the type {entry['dtype']}, which is not supported")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise LightVLAError(f"{damaged} (the tensor {name} has {end - begin} bytes); copy it again")
        if 8 + length + end > file_size:
            raise LightVLAError(f"{damaged} (the tensor {name} ends beyond the end of the file); copy it again")
        tensors.append(StoredTensor(name, dtype, shape, path, _reader(path, 8 + length + begin, dtype, shape)))
    return tensors


def _parse_header(text: bytes, damaged: str) -> dict[str, Any]:
    """Entries by tensor name, in the order of their bytes; damaged: how a sentence about the file begins"""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise LightVLAError(f"{damaged} (its header is not as the format wants it); copy it again")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise LightVLAError(f"{damaged} (its header describes the tensor {name} wrongly); copy it again")
    return dict(sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])))


def _is_entry(entry: Any) -> bool:
    """Whether this says a tensor's type, its shape, and where its bytes begin and end."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    offsets = entry.get("data_offsets")
    return _are_sizes(entry.get("shape")) and _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The file, to read bytes from; an OSError meanwhile becomes one sentence."""
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise LightVLAError(f"cannot read {path} ({error.strerror or error}); may you read it?") from None


def _reader(path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    # Not mapped: a mapped file stays in memory as far as it was read, and a file cut short later kills the process.
    def load() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        with _open(path) as file:
            file.seek(offset)
            view, done = _bytes(tensor), 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise LightVLAError(f"{path} became shorter while it was read; copy it again")
                done += count
        return tensor

    return load


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))


# -- torch's own files


def _list_torch(path: Path) -> list[StoredTensor]:
    files = _OpenFile()

    def entry(name: str, tensor: Tensor) -> StoredTensor:
        def load() -> Tensor:
            return files.state(path)[name].detach().clone()

        return StoredTensor(name, tensor.dtype, tuple(tensor.shape), path, load)

    listed = [entry(name, tensor) for name, tensor in files.state(path).items()]
    files.close()
    return listed


class _OpenFile:
    """A mapped torch file, let go when its last tensor is no longer wanted or another file's tensor is.

    Pages of a mapped file stay in memory once read, so at most one file is mapped at a time.
    """

    _mapped: ClassVar[weakref.ref[_OpenFile] | None] = None

    def __init__(self) -> None:
        self._state: dict[str, Tensor] = {}

    def state(self, path: Path) -> dict[str, Tensor]:
        if not self._state:
            other = _OpenFile._mapped() if _OpenFile._mapped is not None else None
            if other is not None:
                other.close()
            self._state = load_state_dict(path)
            _OpenFile._mapped = weakref.ref(self)
        return self._state

    def close(self) -> None:
        self._state = {}


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save, mapped rather than read where its form allows it. Executes nothing of it."""
    with _open(path) as file:
        if not file.read(2).startswith(_TORCH_BEGINNINGS):
            raise LightVLAError(f"{path} is truncated or not a torch file (a Git LFS pointer?); copy it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise LightVLAError(
            f"{path} holds pickled objects other than tensors and was not loaded; expected a state dict of tensors"
        ) from None
    except Exception as error:  # a damaged file may fail anywhere in torch's reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LightVLAError(f"{path} is truncated or not a torch file ({reason}); copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(i, str) and isinstance(t, Tensor) for i, t in state.items()):
        raise LightVLAError(f"{path} does not hold a state dict of tensors; expected one, as torch.save writes it")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPE_NAMES or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise LightVLAError(f"{path}: the tensor {name} is of a kind that is not supported ({kind})")
    return state


# -- writing


class TensorSpec(NamedTuple):
    """What will be written of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    layout: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total: None,
) -> None:
    """One safetensors file, or, beyond shard_bytes, numbered shards and their index.

    layout: every tensor that will come, in the order in which the files hold them; they may come in any order. Each is
        converted to its dtype and goes to its place at once, so that no more than one is in memory.
    """
    shards = _plan_shards(layout, shard_bytes)
    total, done = sum(spec.nbytes for spec in layout.values()), 0
    places: dict[str, tuple[BinaryIO, int]] = {}
    open_files: list[BinaryIO] = []
    try:
        for file_name, names in shards.items():
            open_files.append((folder / file_name).open("wb"))
            places.update(_write_header(open_files[-1], {name: layout[name] for name in names}))
        for name, tensor in tensors:
            if name not in places:
                raise LightVLAError(f"the tensor {name} came twice or has no place among those to write")
            file, offset = places.pop(name)
            file.seek(offset)
            file.write(_bytes(tensor.to(device="cpu", dtype=layout[name].dtype).contiguous()))
            done += layout[name].nbytes
            progress(done, total)
        if len(shards) > 1:
            weight_map = {name: file_name for file_name, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    finally:
        for opened in open_files:
            opened.close()
    if places:
        raise LightVLAError(f"the tensor {next(iter(places))} never came, so nothing was written")


def _plan_shards(layout: Mapping[str, TensorSpec], shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its tensors."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in layout.items():
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _write_header(file: BinaryIO, specs: Mapping[str, TensorSpec]) -> dict[str, tuple[BinaryIO, int]]:
    """Writes the header; returns where each tensor goes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: (file, 8 + len(text) + header[name]["data_offsets"][0]) for name in specs}
