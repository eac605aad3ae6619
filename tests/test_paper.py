"""The recipes and models against the facts of their papers, each with the place where it stands."""

from pathlib import Path

import pytest
import torch
from torch import nn

from aupipe.config import load_params
from aupipe.facs import AU_SETS
from aupipe.losses import label_weights
from aupipe.models import build_model
from aupipe.models.stral import relation_graph
from aupipe.schema import LabelStats

PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")
AUS = AU_SETS["affwild2"]
STATS = LabelStats.from_json({"rate": [0.1] * 12, "pearson": [[1.0] * 12] * 12, "n": [1000] * 12})


@pytest.fixture(scope="module")
def recipe():
    return PARAMS.recipe("attention_cnn")


@pytest.fixture(scope="module")
def model(recipe):
    return build_model(recipe.model["name"], recipe.model, AUS, STATS)


# "An Attention-based Method for Multi-label Facial Action Unit Detection" (ABAW 2022)


def test_abaw_extractor_is_six_blocks_of_the_stated_filters(model):
    # §3.1: "a stack of 6 convolutional blocks with the number of filters for each block being 32, 64, 128, 128, 256, 256".
    convolutions = [layer for layer in model.extractor if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 128, 256, 256]
    # §3.1: "a 3×3 kernel with a stride is 1 for all convolutional layers and strides of 2×2 for all max-pooling layers".
    assert {(layer.kernel_size, layer.stride) for layer in convolutions} == {((3, 3), (1, 1))}
    pools = [layer for layer in model.extractor if isinstance(layer, nn.MaxPool2d)]
    assert {(layer.kernel_size, layer.stride) for layer in pools} == {(2, 2)}
    # §3.1: "a plain convolutional layer followed by a Batch Normalization layer with ReLU […] and a max-pooling layer".
    # Ours rectifies after the pool, which gives the same values: the largest of rectified values is the largest, rectified.
    kinds = [type(layer) for layer in model.extractor]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU] * 5 + [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    stated = nn.Sequential(*(model.extractor[k] for k in (0, 1, 3, 2)))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(stated(images), model.extractor[:4](images))


def test_abaw_literal_variant_pools_after_every_block():
    literal = build_model("attention_cnn", {"pooling": "literal"}, AUS, STATS)
    assert [type(layer) for layer in literal.extractor] == [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU] * 6


def test_abaw_attention_is_two_layers_over_places(model):
    # §3.1: "a fully connected (FC) layer followed by a Batch Normalization and ReLU layer […] a 1-unit FC layer".
    kinds = [type(layer) for layer in model.attention.children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.Linear]
    assert model.attention.score.out_features == 1
    # Eq. 1 sums over all H × W places; with equal scores that is the mean.
    assert model.eval().attention(torch.zeros(1, 256, 3, 3)).tolist() == [[pytest.approx(1 / 9)] * 9]


def test_abaw_input_is_112_pixels_and_output_12_units(recipe, model):
    # §3.1: "The face image of size 112×112×3"; §3.2: "C is equal to 12"; §4.1: the images that the organisers aligned.
    assert (recipe.input.align, recipe.input.crop) == ("face112", 112)
    assert model.eval()(torch.rand(1, 1, 3, 112, 112)).logits_BTM.shape == (1, 1, 12)
    assert model.head.out_features == len(AUS) == 12


def test_abaw_schedule_is_the_stated_one(recipe):
    # §4.2: "Adam optimizer with the initial learning rate of 0.001 which is set to 0.0001 after 5 epochs […] β1 = 0.9 and
    # β2 = 0.999. The mini-batch size is set to 256", which counts frames.
    (phase,) = recipe.phases
    optimiser = phase.optimiser
    assert (optimiser.name, optimiser.lr, optimiser.weight_decay) == ("adam", 0.001, 0)
    rates = [optimiser.lr * optimiser.decay ** (epoch // optimiser.decay_every) for epoch in range(phase.epochs)]
    assert rates == pytest.approx([0.001] * 5 + [0.0001] * 5)
    assert phase.batch * recipe.clip.frames == 256
    assert recipe.clip.stride == recipe.clip.frames, "every frame once per epoch"


def test_abaw_loss_is_reweighted_on_positives(recipe):
    # Eq. 3 and 4: w = total / (2 · positives) on the positives' term alone; eq. 2 is a mean over AUs.
    assert recipe.loss.weighting == "positive"
    assert recipe.loss.attention_l1 == 0
    weights = label_weights(recipe.loss, STATS)
    assert weights["pos_weight"].tolist() == pytest.approx([1000 / (2 * 100)] * 12)
    assert set(weights) == {"pos_weight"}


# "Spatio-Temporal Relation and Attention Learning for Facial Action Unit Detection" (STRAL)


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


def test_recipes_say_which_paper_they_are_of(recipe):
    assert recipe.paper == "abaw-attention"
    for name, one in PARAMS.recipes.items():
        assert one.paper, name
        assert one.section, name
        assert one.cost, name
