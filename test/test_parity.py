"""This implementation agrees with recorded numbers of the published one."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightvla_core import parity
from lightvla_core.errors import LightVLAError

SMALL = Path(__file__).parent / "data" / "parity"
WHOLE = os.environ.get("LIGHTVLA_PARITY")


def failures(path):
    comparisons = list(parity.run_case(parity.read_case(path)))
    assert comparisons, "a case compares something"
    return [(c.quantity, c.relative) for c in comparisons if not c.passed]


@pytest.mark.parametrize("path", parity.find_cases(SMALL), ids=lambda p: p.stem)
def test_shipped_case_agrees(path):
    assert failures(path) == []


@pytest.mark.skipif(WHOLE is None, reason="LIGHTVLA_PARITY does not name a parity folder")
@pytest.mark.parametrize("path", parity.find_cases(Path(WHOLE)) if WHOLE else [], ids=lambda p: p.stem)
def test_case_of_the_whole_data_agrees(path):
    assert failures(path) == []


def test_a_wrong_number_fails(tmp_path):
    """The comparison itself notices: shift one recorded value by more than the tolerance."""
    source = SMALL / "cases" / "pruner_5_train.safetensors"
    tensors = load_file(source)
    score = tensors["mid.score"]
    score[0, 0, 0] += 2 * parity.TOLERANCE * score.abs().max()
    tensors["mid.keep_mask"][0, 0] ^= True
    case = parity.read_case(source)
    damaged = parity.Case(case.name, tmp_path, case.meta, tensors)
    failed = {c.quantity for c in parity.run_case(damaged) if not c.passed}
    assert failed == {"mid.score", "mid.keep_mask"}


@pytest.mark.parametrize(
    ("steps", "name", "tolerance"),
    [
        (10, "out.actions", parity.CHAIN_TOLERANCE),
        (10, "aligned.noise_pred_per_step", parity.CHAIN_TOLERANCE),
        (10, "mid.last_step_last_hidden", parity.CHAIN_TOLERANCE),
        (10, "mid.score", parity.TOLERANCE),
        (10, "input.proprio_normalized", parity.TOLERANCE),
        (1, "out.actions", parity.TOLERANCE),
    ],
)
def test_only_what_several_denoising_steps_produce_may_deviate_more(steps, name, tolerance):
    case = parity.Case("case", SMALL, {"head": "diffusion", "diffusion_inference_steps": steps}, {})
    assert parity.tolerance(case, name) == tolerance


def test_an_unknown_quantity_is_listed_as_not_supported(tmp_path):
    case = parity.read_case(SMALL / "cases" / "pruner_0_eval.safetensors")
    extended = parity.Case(case.name, tmp_path, case.meta, {**case.tensors, "mid.unheard_of": torch.zeros(1)})
    verdicts = {c.quantity: c.passed for c in parity.run_case(extended)}
    assert verdicts.pop("mid.unheard_of") is None
    assert all(verdicts.values())


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(LightVLAError, match="holds no parity case"):
        parity.find_cases(tmp_path)


def test_a_file_that_is_no_case_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(LightVLAError, match="is not a parity case"):
        parity.read_case(tmp_path / "x.safetensors")
