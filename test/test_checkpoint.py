"""Checkpoint folders: what is written is read back; what is damaged is refused with one sentence and leaves nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightvla_core import checkpoint
from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
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
