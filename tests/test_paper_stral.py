"""STRAL's model and recipes against "Spatio-Temporal Relation and Attention Learning for Facial Action Unit Detection",
each fact with the place where it stands.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from aupipe.config import InitConfig, load_params
from aupipe.facs import AU_SETS
from aupipe.models import build_model
from aupipe.models.stral import relation_graph
from aupipe.optimisers import make_optimiser
from aupipe.schema import LabelStats

PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")


def build_stral(corpus="bp4d", **options):
    M = len(AU_SETS[corpus])
    stats = LabelStats.from_json({"rate": [0.1] * M, "pearson": [[1.0] * M] * M, "n": [1000] * M})
    return build_model("stral", options, AU_SETS[corpus], stats)


def test_stral_hyper_parameters_are_the_stated_ones():
    # §4.1: "the structure hyper-parameter c, […] the temporal kernel size t^k are set to […] 8, […] and 5"; "the threshold
    # τ is 0.15".
    config = build_stral().config
    assert (config.c, config.temporal_kernel, config.threshold) == (8, 5, 0.15)
    # §3.3: "there are eight G^st(8c, t, m) layers"; §4.1: "The number of AUs m is 12 for BP4D and 8 for DISFA".
    for corpus, M in (("bp4d", 12), ("disfa", 8)):
        graph = build_stral(corpus).relations
        assert len(graph.layers) == 8
        assert graph.heads.weight.shape == (M, 64)
        assert {tuple(layer.edges.shape) for layer in graph.layers} == {(3, M, M)}
    # §3.3: "a spatial edge is included if" r ≥ τ, the equal case included.
    assert relation_graph([[1, 0.15], [0.15, 1]]).adjacency_MM.all()


def test_stral_attention_stage_has_the_stated_kernels_and_maps():
    attention = build_stral().attention
    # §3.2: "all the convolutional layers employ 3×3 kernels with stride (1, 1) and padding (1, 1)".
    convolutions = [layer for layer in attention.modules() if isinstance(layer, nn.Conv2d)]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {((3, 3), (1, 1), (1, 1))}
    # Fig. 2: R^hm(4c, l, l) and R^hm(8c, l/2, l/2), "each of which is followed by a max-pooling layer" (§3.1).
    assert (attention.region_1.stem.out_channels, attention.region_2.stem.out_channels) == (32, 64)
    # §3.2: "an attention map M_ij with size l/4 × l/4"; "the learned AU feature […] with a size of 8c".
    features, maps = attention.eval()(torch.zeros(1, 3, 32, 32))
    assert maps.shape == (1, 12, 8, 8)
    assert features.shape == (1, 12, 8 * 8)
    # §3.2: "the last one-dimensional fully-connected layer" of each AU.
    assert attention.heads.weight.shape == (12, 64)


def test_stral_graph_layer_has_the_stated_kernels():
    # §3.3: "three parallel convolutional layers using 1×1 convolutional kernels"; "t^k × 1 convolutional kernels with stride
    # (1, 1) and padding ((t^k − 1)/2, 0)".
    for layer in build_stral().relations.layers:
        assert layer.spatial.weight.shape == (3 * 64, 64)
        temporal = layer.temporal
        assert (temporal.kernel_size, temporal.stride, temporal.padding) == ((5, 1), (1, 1), (2, 0))


def test_stral_variants_are_those_of_its_ablation():
    # Table 3: G^sf has "fixed all-ones edge weight matrices", G^sa "adaptive edge weight layers", both "only the spatial
    # edge subset"; §4.3: "setting the temporal kernel size t^k = 1".
    for variant, adaptive, kernel in (("gsf", False, 1), ("gsa", True, 1), ("stral", True, 5)):
        for layer in build_stral(variant=variant).relations.layers:
            assert (layer.edges is not None) == adaptive
            assert layer.temporal.kernel_size == (kernel, 1)
    assert build_stral(variant="al").relations is build_stral(variant="al_r").relations is None


def test_stral_on_disfa_starts_from_bp4d():
    # §4.1: "the branches of AUs 9, 25 and 26 unavailable in BP4D are initialized from correlated AUs 10, 23 and 24".
    old, new = build_stral(variant="al"), build_stral("disfa", variant="al")
    new.start_from(old.state_dict(), AU_SETS["bp4d"], {9: 10, 25: 23, 26: 24})
    rows = [AU_SETS["bp4d"].index(au) for au in (1, 2, 4, 6, 10, 12, 23, 24)]
    assert torch.equal(new.attention.branches.attention.weight, old.attention.branches.attention.weight[rows])
    assert torch.equal(new.attention.region_2.conv_8.weight, old.attention.region_2.conv_8.weight)


# The last lines of tables 3 (BP4D) and 4 (DISFA): mean F1-frame of AL, AL+R, AL+R+Gsf, AL+R+Gsa and STRAL.
TABLES = {"bp4d": (60.2, 61.4, 61.6, 62.6, 63.2), "disfa": (58.0, 61.0, 60.6, 62.2, 63.0)}
NAMES = ("stral-al", "stral-al-r", "stral-gsf", "stral-gsa", "stral")
VARIANTS = ("al", "al_r", "gsf", "gsa", "stral")
ROWS = [(corpus, *row) for corpus, f1 in TABLES.items() for row in zip(NAMES, VARIANTS, f1, strict=True)]


def row_of(corpus, name):
    return PARAMS.recipe(name if corpus == "bp4d" else f"{name}-disfa")


@pytest.mark.parametrize(("corpus", "name", "variant", "f1"), ROWS)
def test_stral_rows_are_the_columns_of_its_ablation(corpus, name, variant, f1):
    row = row_of(corpus, name)
    assert row.expected == {corpus: f1}
    assert row.model["variant"] == variant
    assert row.paper == "stral"
    # §4.1: c = 8, τ = 0.15, t^k = 5; those of the graph are the model's own in the rows without one.
    assert row.model["c"] == 8
    assert (row.model.get("threshold", 0.15), row.model.get("temporal_kernel", 5)) == (0.15, 5)
    # §4.1: "each image is aligned to 3 × 200 × 200 using similarity transformation, and is further randomly cropped to
    # 3 × l × l and mirrored"; l is 176.
    assert (row.input.align, row.input.crop, row.input.resize, row.input.augment) == ("face200", 176, None, "crop")
    # Eq. 1: w_j of the inverse rates; eq. 3 and §4.3: λ^r is 10⁻⁴, 0 for AL, and the graph's loss is L^u alone (§3.3).
    assert row.loss.weighting == "inverse_rate"
    assert row.loss.attention_l1 == (1e-4 if variant == "al_r" else 0)
    assert row.precision == "fp32"


@pytest.mark.parametrize(("corpus", "name", "variant", "f1"), ROWS)
def test_stral_rows_are_trained_by_the_stated_solver(corpus, name, variant, f1):
    # §4.1: "the SGD solver, a mini-batch size of 8, a Nesterov momentum of 0.9, and a weight decay of 0.0005".
    row = row_of(corpus, name)
    (phase,) = row.phases
    optimiser = phase.optimiser
    assert phase.batch == 8
    assert (optimiser.name, optimiser.momentum, optimiser.weight_decay) == ("sgd", 0.9, 0.0005)
    assert make_optimiser(optimiser, nn.Linear(1, 1)).defaults["nesterov"] is True
    # "for up to 12 epochs with initial learning rate of 0.006 […] up to 24 epochs with initial learning rate of 0.02. The
    # learning rate is multiplied by a factor of 0.3 at every 2 and 6 epochs"; sequences are of t = 48 frames.
    first = variant in ("al", "al_r")
    assert (phase.epochs, optimiser.lr, optimiser.decay_every) == ((12, 0.006, 2) if first else (24, 0.02, 6))
    assert (optimiser.decay, optimiser.schedule) == (0.3, "step")
    assert (row.clip.frames, row.clip.stride, row.clip.interval) == ((1, 1, 1) if first else (48, 48, 1))


def test_stral_graphs_start_from_one_attention_stage():
    # §4.1: "We first train the attention learning stage […] and then train the spatio-temporal relation learning stage";
    # table 3: the graphs are built on AL+R.
    for name in NAMES[2:]:
        assert PARAMS.recipe(name).init == InitConfig(recipe="stral-al-r")
        assert PARAMS.recipe(f"{name}-disfa").init == InitConfig(recipe="stral-al-r-disfa")
    # §4.1: "the attention learning network trained on DISFA is initialized with the parameters of the well-trained model for
    # BP4D, in which the branches of AUs 9, 25 and 26 […] are initialized from correlated AUs 10, 23 and 24 respectively".
    for name in NAMES[:2]:
        assert PARAMS.recipe(name).init is None
        disfa = PARAMS.recipe(f"{name}-disfa").init
        assert (disfa.recipe, disfa.corpus, disfa.au_map) == (name, "bp4d", {9: 10, 25: 23, 26: 24})
