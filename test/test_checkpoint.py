"""Checkpoint folders: what is written is read back; what is damaged is refused with one sentence and leaves nothing."""

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightvla_core import checkpoint, weights
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.inspection import inspect_folder
from lightvla_core.presets import random_weights, write_tiny


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def test_the_same_seed_gives_the_same_weights(tiny_checkpoint, tmp_path):
    again, other = (load_file(write_tiny(tmp_path / str(s), s) / checkpoint.WEIGHTS_FILE) for s in (0, 1))
    first = load_file(tiny_checkpoint / checkpoint.WEIGHTS_FILE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_is_written_is_read_back_in_one_file_or_in_shards(tiny_checkpoint, tmp_path):
    model = checkpoint.load_model(tiny_checkpoint)
    for shard_bytes, files in ((1 << 40, 1), (4 << 20, None)):
        folder = tmp_path / f"shards_of_{shard_bytes}"
        checkpoint.save_checkpoint(
            folder, model.config, model.contract, {}, "{}", model.state_dict().items(), shard_bytes
        )
        written = sorted(folder.glob("*.safetensors"))
        assert len(written) == files or (files is None and len(written) > 5)
        read = checkpoint.load_model(folder)
        assert read.config == model.config
        assert read.contract == model.contract
        assert all(
            torch.equal(a, b) for a, b in zip(read.state_dict().values(), model.state_dict().values(), strict=True)
        )


def test_an_interrupted_write_leaves_nothing(tiny_checkpoint, tmp_path):
    model = checkpoint.load_model(tiny_checkpoint)

    def broken():
        yield from list(model.state_dict().items())[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(tmp_path / "new", model.config, model.contract, {}, "{}", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["mkdir", "write_text", "open", "chmod", "rename"])
def test_a_disk_that_fails_at_any_step_is_told_and_nothing_stays(tiny_checkpoint, tmp_path, monkeypatch, step):
    model = checkpoint.load_model(tiny_checkpoint)

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    destination = tmp_path / "a" / "b" / "new"
    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(LightVLAError, match=r"cannot write .*new \(No space left"):
        checkpoint.save_checkpoint(destination, model.config, model.contract, {}, "{}", model.state_dict().items())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_overwritten(tiny_checkpoint):
    with pytest.raises(LightVLAError, match="exists already"):
        write_tiny(tiny_checkpoint)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(LightVLAError, match="does not exist"):
        checkpoint.load_model(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(LightVLAError, match="is a file, expected the folder"):
        checkpoint.load_model(tmp_path / "file")


def test_a_published_checkpoint_is_pointed_to_import(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    with pytest.raises(LightVLAError, match="lightvla import"):
        checkpoint.load_model(copy)


@pytest.mark.parametrize(
    ("part", "field", "value", "sentence"),
    [
        (None, "model", None, "does not describe a model: expected a field `model`"),
        (None, "model", [], "does not describe a model: expected a field `model`"),
        ("llama", "num_heads", 0, "num_heads should be a whole number from 1 to 1048576, but is 0"),
        ("llama", "hidden_size", 1 << 30, "hidden_size should be a whole number from 1 to"),
        ("llama", "hidden_size", "256", "hidden_size should be a whole number from 1 to 1048576, but is '256'"),
        ("llama", "num_kv_heads", 3, "num_heads 4 should be a multiple of num_kv_heads 3"),
        ("llama", "rope_theta", None, "rope_theta should be a positive number, but is None"),
        ("tokens", "pad", 5000, "the token id 5000 is beyond the vocabulary"),
        ("towers", "timm_id", "hf-hub:someone/tower", "'hf-hub:someone/tower' is no vision transformer that timm"),
        ("towers", "timm_id", "vit_huge_patch99", "'vit_huge_patch99' is no vision transformer that timm knows"),
        ("towers", "timm_id", "vit_so400m_patch14_siglip_224.nobodys", "cannot be built as configured"),
        ("towers", "num_heads", 5, "cannot be built as configured"),
        ("towers", "depth", 0, "depth should be a whole number from 1 to 1048576, but is 0"),
        ("towers", "std", [0.5, 0.5, 0.0], "std of .* should be positive"),
        ("towers", "mean", [0.5], "mean of .* should be three numbers"),
    ],
)
def test_a_model_that_cannot_be_is_refused_and_inspected_in_one_sentence(copy, part, field, value, sentence):
    data = json.loads((copy / "config.json").read_text())
    place = data if part is None else data["model"][part]
    (place[0] if part == "towers" else place)[field] = value
    (copy / "config.json").write_text(json.dumps(data))
    with pytest.raises(LightVLAError, match=sentence) as error:
        checkpoint.load_model(copy)
    assert "\n" not in str(error.value)
    assert [sentence.split()[0] in problem for problem in inspect_folder(copy).problems] == [True]


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"x": []},
        {"x": {"dtype": "F32", "data_offsets": [0, 8]}},
        {"x": {"shape": [2], "data_offsets": [0, 8]}},
        {"x": {**ENTRY, "data_offsets": [0, 4, 8]}},
        {"x": {**ENTRY, "data_offsets": [8, 0]}},
        {"x": {**ENTRY, "data_offsets": [-8, 0]}},
        {"x": {**ENTRY, "data_offsets": ["0", "8"]}},
        {"x": {**ENTRY, "shape": [-2]}},
        {"x": {**ENTRY, "shape": 2}},
        {"x": {**ENTRY, "dtype": ["F32"]}},
        {"x": {**ENTRY, "shape": [3]}},
    ],
)
def test_a_damaged_safetensors_header_names_the_file(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(LightVLAError, match=r"x\.safetensors is truncated or not a safetensors file"):
        weights.list_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"PK\x05\x06" + bytes(30)]
)
def test_something_else_than_a_torch_file_is_not_called_pickled_objects(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(LightVLAError, match=r"x\.pt is truncated or not a torch file"):
        weights.list_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("byte", range(0, 60, 7))
def test_a_torch_file_with_a_wrong_byte_ends_in_one_sentence_or_loads(tmp_path, byte):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    content = bytearray((tmp_path / "x.pt").read_bytes())
    content[byte] ^= 0xFF
    (tmp_path / "x.pt").write_bytes(content)
    with contextlib.suppress(LightVLAError):
        weights.list_tensors(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"w": torch.eye(2).to_sparse()}, "the tensor w is of a kind that is not supported .*sparse"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "the tensor w is of a kind that is not supported .*complex64"),
        ({3: torch.zeros(2)}, "does not hold a state dict of tensors"),
        ([torch.zeros(2)], "does not hold a state dict of tensors"),
    ],
)
def test_what_cannot_be_a_weight_is_refused(tmp_path, state, sentence):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(LightVLAError, match=rf"x\.pt.*{sentence}"):
        weights.list_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("keep", [0, 5, 1000, 1_000_000])
def test_truncated_weights_name_the_file(copy, keep):
    path = copy / checkpoint.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LightVLAError, match=r"model\.safetensors is truncated") as error:
        checkpoint.load_model(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS_FILE, "config.json", "contract.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(LightVLAError, match=name):
        checkpoint.load_model(copy)


def _damage(weights, kind):
    name = "projector.fc1.weight"
    if kind == "missing":
        del weights[name]
    elif kind == "extra":
        weights["projector.fc9.weight"] = torch.zeros(1)
    elif kind == "shape":
        weights[name] = weights[name][:, :-1].contiguous()
    else:
        weights[name][0, 0] = float(kind)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", r"lacks the tensor projector\.fc1\.weight"),
        ("extra", r"model\.safetensors holds the tensor projector\.fc9\.weight"),
        ("shape", r"model\.safetensors: the tensor projector\.fc1\.weight has shape"),
        ("nan", r"projector\.fc1\.weight holds NaN"),
        ("inf", r"projector\.fc1\.weight holds NaN or infinite"),
    ],
)
def test_a_damaged_tensor_is_named_with_its_file(copy, kind, sentence):
    weights = load_file(copy / checkpoint.WEIGHTS_FILE)
    _damage(weights, kind)
    save_file(weights, copy / checkpoint.WEIGHTS_FILE)
    with pytest.raises(LightVLAError, match=sentence):
        checkpoint.load_model(copy)


def test_random_weights_leave_the_global_random_state_alone(tiny_checkpoint):
    config = checkpoint.read_config(tiny_checkpoint)
    contract = PolicyContract.from_file(tiny_checkpoint / "contract.json")
    before = torch.get_rng_state()
    random_weights(config, contract, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def read_memory(field):
    """VmRSS or VmHWM (the peak) of this process, bytes"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of memory")
def test_loading_shards_needs_the_memory_of_the_model_and_little_more(tiny_checkpoint, tmp_path):
    """Less than the model and 1.3 times the largest shard, for 0.2 GB in four shards."""
    config = checkpoint.read_config(tiny_checkpoint)
    contract = PolicyContract.from_file(tiny_checkpoint / "contract.json")
    contract = dataclasses.replace(contract, action_head="discrete")
    wide = {"hidden_size": 1024, "intermediate_size": 2816, "num_heads": 16, "num_kv_heads": 16}
    config = dataclasses.replace(config, llama=dataclasses.replace(config.llama, **wide))
    shapes = checkpoint.model_shapes(config, contract)
    zeros = ((name, torch.zeros(shape)) for name, shape in shapes.items())
    checkpoint.save_checkpoint(tmp_path / "large", config, contract, {}, None, zeros, shard_bytes=64 << 20)
    sizes = [path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors")]
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed must not serve again
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = read_memory("VmRSS")
    model = checkpoint.load_model(tmp_path / "large")
    growth = read_memory("VmHWM") - before
    shutil.rmtree(tmp_path / "large")
    assert model.config == config
    assert len(sizes) >= 4
    assert sum(sizes) > 0.2e9
    assert 0.9 * sum(sizes) < growth < sum(sizes) + 1.3 * max(sizes)
