"""`lightvla inspect`: what it tells of a folder, from headers alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_fixtures import FUSED_224, write_configuration, write_published
from rich.console import Console

from lightvla_core import weights
from lightvla_core.checkpoint import load_model
from lightvla_core.errors import LightVLAError
from lightvla_core.inspection import inspect_folder, render


def rendered(folder: Path) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(inspect_folder(folder)))
    return console.export_text()


def test_a_folder_of_this_package_is_complete_and_counted(tiny_checkpoint: Path) -> None:
    found = inspect_folder(tiny_checkpoint)
    assert found.problems == []
    assert found.parameters == sum(p.numel() for p in load_model(tiny_checkpoint).parameters())
    text = rendered(tiny_checkpoint)
    for word in ("aloha", "left_waist (rad)", "language model", "float32", "memory needed in bfloat16", "weighted"):
        assert word in text


def test_no_tensor_is_read(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_published(tmp_path / "src", form="sharded_bin")

    def refuse(self: weights.StoredTensor) -> None:
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(weights.StoredTensor, "read", refuse)
    monkeypatch.setattr(torch.Tensor, "clone", refuse)
    monkeypatch.setattr(weights, "_bytes", refuse)
    assert inspect_folder(tiny_checkpoint).problems == []
    assert inspect_folder(published.folder).parameters > 0


def test_a_published_folder_says_what_import_needs(tmp_path: Path) -> None:
    published = write_published(tmp_path / "src")
    found = inspect_folder(published.folder)
    assert found.problems == []
    assert found.parameters == sum(tensor.numel() for tensor in published.weights.values())
    assert [line.split()[0] for line in found.needed] == ["--variant", "--robot"]
    (published.folder / "tokenizer.json").unlink()
    assert any("--tokenizer" in line for line in inspect_folder(published.folder).needed)


def lose_contract(folder: Path) -> None:
    (folder / "contract.json").unlink()


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_statistics(folder: Path) -> None:
    (folder / "dataset_statistics.json").unlink()


def break_statistics(folder: Path) -> None:
    (folder / "dataset_statistics.json").write_text("[1, 2]")


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lose_contract, "cannot read the contract"),
        (lose_tokenizer, "holds no tokenizer.json"),
        (lose_statistics, "dataset_statistics.json"),
        (break_statistics, "dataset_statistics.json should hold statistics"),
        (truncate_weights, "model.safetensors is truncated"),
    ],
)
def test_what_is_missing_is_told_beside_what_is_there(damage, sentence, tiny_checkpoint: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    damage(copy)
    found = inspect_folder(copy)
    assert len(found.problems) == 1
    assert sentence in found.problems[0]
    assert "vision" in found.facts


def test_a_published_folder_without_weights_is_still_described(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_configuration(tmp_path / "src", "libero", FUSED_224, 56, {})
    found = inspect_folder(tmp_path / "src")
    assert ["holds no weights" in problem for problem in found.problems] == [True]


@pytest.mark.parametrize("config", ["[]", '{"model_type": "openvla"}', '{"format": "lightvla/1", "model": 3}'])
def test_a_configuration_of_any_content_is_told_and_never_raised(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    problems = inspect_folder(tmp_path).problems
    assert any("config.json" in problem for problem in problems)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LightVLAError, match=r"cannot read .*config\.json"):
        inspect_folder(tmp_path)


def test_the_command_exits_with_status_1_when_something_is_missing(
    lightvla: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = lightvla("inspect", tiny_checkpoint)
    assert (done.status, done.stderr) == (0, "")
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    lose_tokenizer(copy)
    done = lightvla("inspect", copy)
    assert done.status == 1
    assert "missing or damaged" in done.stdout
