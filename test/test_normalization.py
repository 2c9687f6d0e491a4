"""Robot units to [-1, 1] and back, as the published implementation computes them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightvla_core.contract import Camera
from lightvla_core.errors import LightVLAError
from lightvla_core.normalization import Bounds, Normalizer, read_bounds
from lightvla_core.presets import aloha_contract

CONTRACT = aloha_contract((Camera("cam_high"),))
ENTRY = {"min": [-1.0] * 14, "max": [2.0] * 14}
PARITY = os.environ.get("LIGHTVLA_PARITY")


@given(arrays(np.float64, 5, elements=st.floats(-1, 1)), st.data())
def test_unnormalize_undoes_normalize_inside_the_bounds(values, data):
    lower = data.draw(arrays(np.float64, 5, elements=st.floats(-10, 10)))
    width = data.draw(arrays(np.float64, 5, elements=st.floats(1e-3, 10)))
    mask = data.draw(arrays(bool, 5))
    bounds = Bounds(lower, lower + width, mask)
    assert np.allclose(bounds.normalize(bounds.unnormalize(values)), values, atol=1e-4)


def test_unmapped_dimensions_pass_through_actions_but_are_clipped_as_proprioception():
    bounds = Bounds(np.zeros(2), np.ones(2) * 4, np.array([True, False]))
    assert bounds.unnormalize(np.array([1.0, 3.0])) == pytest.approx([4.0, 3.0])
    assert bounds.normalize(np.array([4.0, 3.0])) == pytest.approx([1.0, 1.0])


def test_actions_are_not_clipped():
    bounds = Bounds(np.zeros(1), np.ones(1), np.array([True]))
    assert bounds.unnormalize(np.array([3.0])) == pytest.approx([2.0])


def test_statistics_key_falls_back_to_its_no_noops_twin():
    statistics = {"aloha_sim_no_noops": {"action": ENTRY, "proprio": ENTRY}}
    normalizer = Normalizer.from_statistics(statistics, CONTRACT, "statistics")
    assert normalizer.action.upper[0] == 2.0


@pytest.mark.parametrize(
    ("statistics", "sentence"),
    [
        ({"other": {}}, "no statistics for 'aloha_sim'"),
        ({"aloha_sim": {"proprio": ENTRY}}, "aloha_sim.action lacks"),
        (
            {"aloha_sim": {"action": {"min": [0.0] * 7, "max": [1.0] * 7}}},
            "describes 7 numbers, but the contract has 14",
        ),
        ({"aloha_sim": {"action": {"min": [3.0] * 14, "max": [2.0] * 14}}}, "a min above its max"),
        ({"aloha_sim": {"action": {"min": ["x"] * 14, "max": [2.0] * 14}}}, "lacks"),
        ({"aloha_sim": {"action": [1.0]}}, "aloha_sim.action lacks min and max as lists of numbers"),
        ({"aloha_sim": {"action": None}}, "aloha_sim.action lacks min and max as lists of numbers"),
        ({"aloha_sim": {"action": {**ENTRY, "mask": "all"}}}, "a mask that is no list of true and false"),
        ({"aloha_sim": {"action": {**ENTRY, "mask": [True]}}}, "describes 1 numbers"),
        ({"aloha_sim": [ENTRY]}, "statistics should hold statistics under the name of each data set"),
        (["aloha_sim"], "statistics should hold statistics under the name of each data set"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(statistics, sentence):
    with pytest.raises(LightVLAError, match=sentence):
        Normalizer.from_statistics(statistics, CONTRACT, "statistics")


@pytest.mark.skipif(PARITY is None, reason="LIGHTVLA_PARITY does not name a parity folder")
def test_recorded_values_of_the_published_implementation():
    recorded = json.loads((Path(PARITY) / "normalization" / "normalization.json").read_text())
    for case in recorded["proprio"]:
        bounds = read_bounds(case["stats"], case["type"], len(case["stats"]["min"]), "recorded")
        assert np.allclose(bounds.normalize(np.array(case["raw"])), case["normalized"], rtol=0, atol=1e-12)
    for case in recorded["action"]:
        bounds = read_bounds(case["stats"], case["type"], len(case["stats"]["min"]), "recorded")
        # Recorded with float32 intermediate values.
        assert np.allclose(bounds.unnormalize(np.array(case["normalized"])), case["actions"], rtol=0, atol=1e-6)
