"""recipes.py: what a recipe may not say. test_config.py has how recipes are read, test_paper_*.py what they say."""

from pathlib import Path

import pytest
from conftest import make_recipe

from aupipe.config import ALIGN_SIZE, load_params
from aupipe.recipes import ClipConfig, InitConfig, InputSpec, LossConfig, OptimiserConfig, PhaseConfig
from aupipe.schema import ConfigError

ROOT = Path(__file__).parents[1]
ADAM = OptimiserConfig(name="adam", lr=0.1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: PhaseConfig(name="p", epochs=1, batch=1, optimiser=ADAM, crops=-1), "phase 'p' has crops ≥ 0, not -1"),
        (lambda: PhaseConfig(name="p", epochs=1, batch=1, optimiser=ADAM, patience=-1), "patience of epochs ≥ 0, not -1"),
        (lambda: PhaseConfig(name="p", epochs=0, batch=1, optimiser=ADAM), "at least one epoch and one clip per batch"),
        (lambda: InitConfig(recipe="r", au_map={1: 3}), "unknown AU 3"),
        (lambda: InitConfig(recipe="r", au_map={3: 1}), "unknown AU 3"),
        (lambda: InputSpec(align="face200", crop=201), "a crop of 201 pixels does not fit into face200; give 1 to 200"),
        (lambda: ClipConfig(frames=1, stride=0), "must be at least 1"),
        (lambda: LossConfig(weighting="sum"), "unknown loss weighting 'sum'"),
        (lambda: OptimiserConfig(name="adam", lr=0.0), "positive lr"),
        (lambda: make_recipe(micro_batch=-1), "micro_batch is a number of clips ≥ 0, not -1"),
        (lambda: make_recipe(precision="fp8"), "unknown precision 'fp8'"),
        (lambda: make_recipe(phases=[]), "at least one phase"),
    ],
)
def test_value_that_cannot_be_is_named(make, reason):
    with pytest.raises(ConfigError, match=reason):
        make()


def test_two_aus_may_start_from_one():
    assert InitConfig(recipe="r", au_map={9: 10, 25: 10}).au_map == {9: 10, 25: 10}


def test_stral_frames_can_be_cut_into_patches():
    for name, recipe in load_params(ROOT / "params.yaml").recipes.items():
        if recipe.model["name"] in ("stral", "arl_like"):
            side = recipe.input.resize or recipe.input.crop
            assert side % 16 == 0, name
            assert recipe.input.crop < ALIGN_SIZE[recipe.input.align], f"{name}: no room to move the crop"
