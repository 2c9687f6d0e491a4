"""Adapters in peft's form: merged as peft merges them, found in weights that contain them, refused when unsuitable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from published_fixtures import Published, write_json, write_published
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightvla_core import lora, merging
from lightvla_core.checkpoint import load_model
from lightvla_core.errors import LightVLAError
from lightvla_core.importing import ImportOptions, plan_import, write_import
from lightvla_core.inspection import inspect_folder

OPTIONS = ImportOptions("oft", "libero")
RANK, ALPHA = 4, 8
LINEAR = "language_model.model.layers.1.mlp.gate_proj"
CONVOLUTION = "vision_backbone.featurizer.patch_embed.proj"
UNUSED = ("featurizer.blocks.2.attn.qkv", "fused_featurizer.blocks.2.mlp.fc1", "fused_featurizer.attn_pool.kv")


def write_adapter(folder: Path, shapes: dict[str, tuple[int, ...]], **config: object) -> dict[str, Tensor]:
    """An adapter for these weights (module name -> shape); returns each weight's update."""
    folder.mkdir()
    write_json(folder / lora.CONFIG_FILE, {"r": RANK, "lora_alpha": ALPHA, "peft_type": "LORA", **config})
    generator = torch.Generator().manual_seed(1)
    tensors, updates = {}, {}
    for name, (outputs, *inputs) in shapes.items():
        a = torch.randn(RANK, *inputs, generator=generator)
        b = torch.randn(outputs, RANK, *[1] * (len(inputs) - 1), generator=generator)
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        product = b.flatten(1).double() @ a.flatten(1).double()
        updates[f"{name}.weight"] = (ALPHA / RANK * product).reshape(outputs, *inputs)
    save_file(tensors, folder / "adapter_model.safetensors")
    return updates


def shapes_of(published: Published, *modules: str) -> dict[str, tuple[int, ...]]:
    return {module: tuple(published.weights[f"{module}.weight"].shape) for module in modules}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Published, dict[str, Tensor]]:
    """A checkpoint whose lora_adapter/ is not merged yet, and its updates."""
    published = write_published(tmp_path / "src")
    shapes = shapes_of(published, LINEAR, CONVOLUTION)
    return published, write_adapter(published.folder / lora.FOLDER, shapes)


def assert_merged(folder: Path, published: Published, updates: dict[str, Tensor]) -> None:
    state = load_model(folder).state_dict()
    for name, weight in published.weights.items():
        expected = weight.double() + updates.get(name, 0)
        assert torch.allclose(state[name].double(), expected, rtol=1e-5, atol=1e-5), name


def test_import_merges_an_adapter_that_is_not_in_the_weights(run, tmp_path):
    published, updates = run
    write_import(plan_import(published.folder, OPTIONS), tmp_path / "dst")
    assert_merged(tmp_path / "dst", published, updates)
    assert not (tmp_path / "dst" / lora.FOLDER).exists()


def test_import_leaves_alone_an_adapter_that_is_in_the_weights(run, tmp_path):
    """As the published training leaves its folders: merged weights and their lora_adapter/ side by side."""
    published, updates = run
    merging.merge_folder(published.folder, published.folder, tmp_path / "merged")
    shutil.copytree(published.folder / lora.FOLDER, tmp_path / "merged" / lora.FOLDER)
    plan = plan_import(tmp_path / "merged", OPTIONS)
    decision = next(d for d in plan.decisions if d.what == "LoRA adapter")
    assert "merged already" in decision.reason
    write_import(plan, tmp_path / "dst")
    assert_merged(tmp_path / "dst", published, updates)


@pytest.mark.parametrize("choice", ["merge", "merged"])
def test_an_explicit_choice_about_the_adapter_wins(run, tmp_path, choice):
    published, updates = run
    write_import(plan_import(published.folder, ImportOptions("oft", "libero", adapter=choice)), tmp_path / "dst")
    assert_merged(tmp_path / "dst", published, updates if choice == "merge" else {})


def test_loading_merges_the_adapter_of_a_folder_of_this_package(run, tmp_path):
    published, updates = run
    write_import(plan_import(published.folder, ImportOptions("oft", "libero", adapter="merged")), tmp_path / "dst")
    shutil.copytree(published.folder / lora.FOLDER, tmp_path / "dst" / lora.FOLDER)
    assert_merged(tmp_path / "dst", published, updates)


def test_merging_offline_keeps_form_types_and_side_files(tmp_path):
    base = write_published(tmp_path / "base", form="sharded_bin", dtype=torch.bfloat16)
    (tmp_path / "run").mkdir()
    updates = write_adapter(tmp_path / "run" / lora.FOLDER, shapes_of(base, LINEAR))
    write_json(tmp_path / "run/dataset_statistics.json", {"of": "the run"})
    count = merging.merge_folder(base.folder, tmp_path / "run", tmp_path / "dst")
    assert count == 1
    merged = load_file(tmp_path / "dst/model.safetensors")
    expected = base.weights[f"{LINEAR}.weight"].double() + updates[f"{LINEAR}.weight"]
    assert merged[f"{LINEAR}.weight"].dtype == torch.bfloat16
    assert torch.equal(merged[f"{LINEAR}.weight"], expected.to(torch.bfloat16))
    assert json.loads((tmp_path / "dst/dataset_statistics.json").read_text()) == {"of": "the run"}
    assert (tmp_path / "dst/action_head--150000_checkpoint.pt").is_file()
    assert not list((tmp_path / "dst").glob("*.bin"))


def test_a_side_file_of_the_run_replaces_the_one_of_the_base(tmp_path):
    base = write_published(tmp_path / "base")
    (tmp_path / "run").mkdir()
    write_adapter(tmp_path / "run" / lora.FOLDER, shapes_of(base, LINEAR))
    (tmp_path / "run/action_head--200000_checkpoint.pt").write_bytes(b"trained longer")
    merging.merge_folder(base.folder, tmp_path / "run", tmp_path / "dst")
    assert [path.name for path in (tmp_path / "dst").glob("action_head*")] == ["action_head--200000_checkpoint.pt"]
    assert (tmp_path / "dst/proprio_projector--150000_checkpoint.pt").is_file()


@pytest.fixture
def own(tmp_path):
    """A folder of this package, its source, and a training run with an adapter for every linear layer of the source."""
    published = write_published(tmp_path / "src")
    write_import(plan_import(published.folder, OPTIONS), tmp_path / "own")
    (tmp_path / "run").mkdir()
    shapes = shapes_of(published, LINEAR, CONVOLUTION)
    unused = {f"vision_backbone.{name}": (4, 4) for name in UNUSED}
    updates = write_adapter(tmp_path / "run" / lora.FOLDER, shapes | unused)
    return published, {name: updates[name] for name in published.weights if name in updates}


@pytest.mark.parametrize("offline", [True, False])
def test_an_adapter_for_all_layers_merges_into_a_folder_that_lacks_the_unused_ones(own, tmp_path, offline):
    published, updates = own
    if offline:
        assert merging.merge_folder(tmp_path / "own", tmp_path / "run", tmp_path / "dst") == len(updates)
    else:
        shutil.copytree(tmp_path / "run" / lora.FOLDER, tmp_path / "own" / lora.FOLDER)
    assert_merged(tmp_path / ("dst" if offline else "own"), published, updates)


def test_a_run_never_replaces_what_says_which_model_a_folder_of_this_package_is(own, tmp_path):
    for name in ("config.json", "contract.json", "notes.txt"):
        (tmp_path / "run" / name).write_text("the run's")
    merging.merge_folder(tmp_path / "own", tmp_path / "run", tmp_path / "dst")
    for name in ("config.json", "contract.json"):
        assert (tmp_path / "dst" / name).read_text() == (tmp_path / "own" / name).read_text()
    assert (tmp_path / "dst/notes.txt").is_file()


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_merging_equals_peft(tmp_path, conv, rslora):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 2) if conv else nn.Linear(6, 8)
    base = {"layer.weight": layer.weight.detach().clone()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], use_rslora=rslora)
    config.init_lora_weights = False
    model = peft.get_peft_model(_Wrapper(layer), config)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().layer.weight
    save_file(base, tmp_path / "base.safetensors")
    (merged,) = lora.merge(lora.read_adapter(tmp_path / "adapter"), lora.list_tensors(tmp_path / "base.safetensors"))
    assert torch.allclose(merged.load(), expected, rtol=1e-6, atol=1e-6)


class _Wrapper(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_film_backbone_file_replaces_what_the_adapter_says_of_the_backbone(tmp_path):
    published = write_published(tmp_path / "src", film=True)
    shapes = shapes_of(published, LINEAR) | {"vision_backbone.vision_backbone.featurizer.blocks.0.block.x": (2, 2)}
    updates = write_adapter(published.folder / lora.FOLDER, shapes)
    write_import(plan_import(published.folder, OPTIONS), tmp_path / "dst")
    assert_merged(tmp_path / "dst", published, updates)
    merging.merge_folder(published.folder, published.folder, tmp_path / "merged")


def test_low_rank_side_files_are_merged_with_the_published_scale(tmp_path):
    """Rank 32 and alpha 16, as the published fine-tuning writes: scale 1/2."""
    published = write_published(tmp_path / "src", film=True)
    path = published.folder / "vision_backbone--150000_checkpoint.pt"
    state = torch.load(path, weights_only=True)
    name = "vision_backbone.featurizer.blocks.0.block.mlp.fc1"
    a, b = torch.randn(32, 24), torch.randn(state[f"{name}.weight"].shape[0], 32)
    state[f"{name}.base_layer.weight"] = state.pop(f"{name}.weight")
    state[f"{name}.base_layer.bias"] = state.pop(f"{name}.bias")
    state |= {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
    torch.save(state, path)
    write_import(plan_import(published.folder, OPTIONS), tmp_path / "dst")
    assert_merged(tmp_path / "dst", published, {f"{name}.weight": (b.double() @ a.double()) / 2})


# -- refused


def test_an_adapter_without_its_base_is_pointed_to_merge_lora(run, tmp_path):
    published, _ = run
    (published.folder / "model.safetensors").unlink()
    with pytest.raises(LightVLAError, match="lightvla merge-lora BASE"):
        plan_import(published.folder, OPTIONS)


@pytest.mark.parametrize("command", [lambda folder: plan_import(folder, OPTIONS), inspect_folder])
@pytest.mark.parametrize("name", ["", lora.FOLDER])
def test_an_adapter_alone_is_pointed_to_merge_lora(tmp_path, command, name):
    write_adapter(tmp_path / lora.FOLDER, {"layer": (2, 2)})
    with pytest.raises(LightVLAError, match="lightvla merge-lora BASE"):
        command(tmp_path / name)


def test_a_side_file_of_the_run_has_no_place_in_a_folder_of_this_package(own, tmp_path):
    (tmp_path / "run/action_head--150000_checkpoint.pt").touch()
    with pytest.raises(LightVLAError, match=r"action_head--150000_.*merge into the published base, then import"):
        merging.merge_folder(tmp_path / "own", tmp_path / "run", tmp_path / "dst")


def test_an_adapter_of_another_model_is_named_before_its_share_is_measured(run):
    published, _ = run
    change_adapter(published.folder / lora.FOLDER, {f"base_model.model.{LINEAR}.lora_A.weight": torch.ones(RANK, 5)})
    with pytest.raises(LightVLAError, match=r"adapter_model\.safetensors: the tensor .*which do not fit"):
        plan_import(published.folder, OPTIONS)


def test_a_side_file_of_rank_zero_is_refused(tmp_path):
    path = write_published(tmp_path / "src").folder / "action_head--150000_checkpoint.pt"
    factors = {"fc1.lora_A.weight": torch.ones(0, 4), "fc1.lora_B.weight": torch.ones(4, 0)}
    torch.save(torch.load(path, weights_only=True) | factors, path)
    with pytest.raises(LightVLAError, match=r"_checkpoint\.pt: the tensor fc1\.lora_A\.weight has shape \(0, 4\)"):
        plan_import(tmp_path / "src", OPTIONS)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias is 'all', which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"alpha_pattern": {"q_proj": 3}}, "ranks or scales per layer"),
        ({"lora_alpha": None}, "expected r and lora_alpha"),
        ({"r": 0}, "r should be a rank of at least 1, but is 0"),
        ({"r": "8"}, "r should be a rank of at least 1, but is '8'"),
    ],
)
def test_more_than_plain_low_rank_updates_is_refused(tmp_path, config, sentence):
    write_adapter(tmp_path / "adapter", {"layer": (2, 2)}, **config)
    with pytest.raises(LightVLAError, match=sentence):
        lora.read_adapter(tmp_path / "adapter")


def change_adapter(folder: Path, change: dict[str, Tensor | None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"base_model.model.{LINEAR}.lora_A.weight": None}, "but not the other factor of"),
        ({f"base_model.model.{LINEAR}.lora_A.weight": torch.ones(RANK, 5)}, "which do not fit"),
        ({f"base_model.model.{LINEAR}.lora_A.weight": torch.ones(RANK)}, "a LoRA factor is a matrix"),
        ({f"base_model.model.{LINEAR}.lora_B.weight": torch.full((24, RANK), torch.nan)}, "holds NaN"),
        ({"base_model.model.x.lora_embedding_A": torch.ones(1)}, "is no LoRA factor of a linear layer"),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(4, 2),
                "base_model.model.x.lora_B.weight": torch.ones(2, 4),
            },
            r"the weights to merge into hold no x\.weight",
        ),
    ],
)
def test_a_damaged_adapter_is_named_with_its_tensor(run, tmp_path, change, sentence):
    published, _ = run
    change_adapter(published.folder / lora.FOLDER, change)
    with pytest.raises(LightVLAError, match=sentence) as error:
        merging.merge_folder(published.folder, published.folder / lora.FOLDER, tmp_path / "dst")
    assert "adapter_model.safetensors" in str(error.value)
    assert not (tmp_path / "dst").exists()


def test_the_command_merges(lightvla, run, tmp_path):
    published, updates = run
    done = lightvla("merge-lora", published.folder, published.folder, tmp_path / "dst")
    assert done.status == 0, done.stderr
    assert "2 matrices merged" in done.stdout
    expected = published.weights[f"{LINEAR}.weight"].double() + updates[f"{LINEAR}.weight"]
    merged = load_file(tmp_path / "dst/model.safetensors")
    assert torch.allclose(merged[f"{LINEAR}.weight"].double(), expected, rtol=1e-5, atol=1e-5)
