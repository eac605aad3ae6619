"""SAT-Net's recipes against its poster, "SAT-Net: Self-Attention and Temporal Fusion for Facial Action Unit Detection",
and the baselines' against the tables of the papers that print them.
"""

from pathlib import Path

import pytest

from aupipe.config import InitConfig, load_params
from aupipe.models import check_config, check_recipe

PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")

# The last lines of tables 1 (BP4D) and 2 (DISFA); in the second, SA-Net stands before T-Net.
ROWS = {
    "resnet18": ("resnet", 61.7, 52.5, None),
    "t_net": ("t_net", 61.8, 54.3, "resnet18"),
    "sa_net": ("sa_net", 62.5, 53.5, None),
    "sat_net": ("sat_net", 63.3, 56.7, "sa_net"),
}


@pytest.mark.parametrize("name", ROWS)
def test_satnet_rows_are_the_columns_of_its_tables(name):
    variant, bp4d, disfa, origin = ROWS[name]
    row = PARAMS.recipe(name)
    assert row.expected == {"bp4d": bp4d, "disfa": disfa}
    assert row.paper == "satnet-poster"
    config = check_config("sat_net", row.model)
    # "least training parameters": true of ResNet-18 alone.
    assert (row.model["name"], config.variant, config.depth) == ("sat_net", variant, 18)
    # Ours: the temporal ones start from the frame models, which start from ImageNet.
    assert row.init == (None if origin is None else InitConfig(recipe=origin))
    assert (config.weights is None) == (origin is not None)


def test_satnet_reads_sequences_many_to_one():
    # Abstract: the past is fused "into the feature map of the last frame".
    for name in ("t_net", "sat_net"):
        row = PARAMS.recipe(name)
        config = check_config("sat_net", row.model)
        assert (config.targets, config.fusion, config.kernel) == ("last", "replace", 3)
        assert (row.clip.frames, row.clip.stride) == (config.window, 1), "every frame is the last of a window"


# STRAL, tables 1 (BP4D) and 2 (DISFA): DRML and ARL; SAT-Net, table 1: CNN-LSTM, which has no column in table 2.
PRINTED = {
    "drml": {"bp4d": 48.3, "disfa": 26.7},
    "arl_like": {"bp4d": 61.1, "disfa": 58.7},
    "cnn_lstm": {"bp4d": 53.2},
    **{name: {} for name in ("resnet50", "me_graphau-1", "me_graphau-2", "embeddings")},
}


@pytest.mark.parametrize("name", PRINTED)
def test_baselines_expect_what_is_printed(name):
    assert PARAMS.recipe(name).expected == PRINTED[name]


def test_arl_is_trained_as_its_solver_says():
    # Published solver: lr 0.006, times 0.3 every 20,000 steps of 8 frames, 120,000 steps, Nesterov 0.9, decay 0.0005; on
    # BP4D's two parts of some 100,000 frames that is every 1.6 epochs of 9.5.
    row = PARAMS.recipe("arl_like")
    (phase,) = row.phases
    assert (row.clip.frames, phase.batch, phase.epochs) == (1, 8, 10)
    optimiser = phase.optimiser
    assert (optimiser.name, optimiser.lr, optimiser.momentum, optimiser.weight_decay) == ("sgd", 0.006, 0.9, 0.0005)
    assert (optimiser.decay, optimiser.decay_every) == (0.3, 2)


def test_drml_is_trained_as_its_solver_says():
    # Published solver: lr 0.001, times 0.1 every 4,000 steps of 128 frames: every 5.3 epochs of BP4D.
    row = PARAMS.recipe("drml")
    (phase,) = row.phases
    assert row.clip.frames * phase.batch == 128
    assert (phase.optimiser.name, phase.optimiser.lr, phase.optimiser.decay, phase.optimiser.decay_every) == (
        "sgd",
        0.001,
        0.1,
        5,
    )
    assert (row.input.align, row.input.crop, row.model["size"]) == ("face200", 170, 170)
    assert row.loss.weighting == "none"


def test_every_recipe_says_where_it_is_from_and_can_be_built():
    for name, one in PARAMS.recipes.items():
        for word in ("paper", "section", "cost"):
            assert getattr(one, word), f"{name}: {word}"
        check_recipe(one)


def test_every_recipe_has_a_demo_twin_of_its_own_model():
    full = {name for name in PARAMS.recipes if not name.endswith("-demo")}
    assert len(full & {"stral", "sat_net", "attention_cnn"}) == 3
    for name in full:
        twin, one = PARAMS.recipe(f"{name}-demo"), PARAMS.recipe(name)
        assert twin.model["name"] == one.model["name"]
        assert twin.model.get("variant") == one.model.get("variant")
        assert twin.expected == {}, "a demo is not what the paper trained"
        assert twin.model.get("weights") is None, "it needs no file that a fresh checkout lacks"
        if one.init is not None:
            assert twin.init.recipe == f"{one.init.recipe}-demo"
