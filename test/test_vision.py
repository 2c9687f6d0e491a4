"""The vision backbone: which channels go where, and where FiLM acts."""

import pytest
import torch
from model_fixtures import FUSED, tower

from lightvla_core.model.vision import Projector, VisionBackbone, run_tower

SINGLE = (tower(),)


def backbone(towers, film=None):
    torch.manual_seed(0)
    return VisionBackbone(towers, film).eval()


def draw(towers, images, batch=1):
    return torch.randn(batch, images * 3 * len(towers), 42, 42, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("towers", [FUSED, SINGLE], ids=["fused", "single"])
@torch.inference_mode()
def test_images_stand_side_by_side_and_each_tower_reads_its_three_channels(towers, images):
    model, pixels = backbone(towers), draw(towers, images, batch=2)
    features = model(pixels)
    assert features.shape == (2, images * 9, 24 * len(towers))
    for image in range(images):
        for i, part in enumerate(model.towers):
            first = 3 * (image * len(towers) + i)
            own = run_tower(part, pixels[:, first : first + 3], None)
            found = features[:, image * 9 : (image + 1) * 9, 24 * i : 24 * (i + 1)]
            assert torch.allclose(found, own, atol=1e-5)


def test_the_last_block_and_the_final_norm_are_not_built():
    model = backbone(FUSED)
    assert [len(part.blocks) for part in model.towers] == [2, 2]
    assert not any(name.startswith("featurizer.norm.") for name in model.state_dict())


@pytest.mark.parametrize("towers", [FUSED, SINGLE], ids=["fused", "single"])
@torch.inference_mode()
def test_film_that_neither_scales_nor_shifts_changes_nothing(towers):
    plain, film = backbone(towers), backbone(towers, film=16)
    renamed = {}
    for name, tensor in plain.state_dict().items():
        before, blocks, after = name.partition(".blocks.")
        number, _, rest = after.partition(".")
        renamed[f"{before}{blocks}{number}.block.{rest}" if blocks else name] = tensor
    for name, tensor in film.state_dict().items():
        if ".scale." in name or ".shift." in name:
            renamed[name] = torch.zeros_like(tensor)
    film.load_state_dict(renamed)
    pixels, language = draw(towers, 2), torch.ones(1, 16)
    assert torch.allclose(film(pixels, language), plain(pixels), atol=1e-5)
    renamed["featurizer.blocks.0.shift.bias"] = torch.ones(24)
    film.load_state_dict(renamed)
    assert not torch.allclose(film(pixels, language), plain(pixels), atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_the_projector_has_three_layers_for_fused_towers_and_two_for_one(fused):
    projector = Projector(24, 32, fused)
    assert sum(name.endswith("weight") for name in projector.state_dict()) == (3 if fused else 2)
    assert projector(torch.randn(2, 9, 24)).shape == (2, 9, 32)
