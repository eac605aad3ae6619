"""The attention CNN's model and recipes against "An Attention-based Method for Multi-label Facial Action Unit Detection"
(ABAW 2022), each fact with the place where it stands.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from aupipe.config import load_params
from aupipe.facs import AU_SETS
from aupipe.losses import label_weights
from aupipe.models import build_model
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


# Table 1, "F1 score (%)", which holds fractions: every row that is the paper's own.
ROWS = {
    "attention_cnn": (0.4803, {}),
    "attention_cnn-no-attention": (0.4535, {"attention": False}),
    "attention_cnn-no-reweight": (0.4323, {}),
    "attention_cnn-resnet50": (0.3157, {"backbone": "resnet50", "weights": "data/weights/resnet50.safetensors"}),
    "attention_cnn-inception_v3": (0.2383, {"backbone": "inception_v3", "weights": "data/weights/inception_v3.safetensors"}),
    "attention_cnn-efficientnet": (
        0.3184,
        {"backbone": "efficientnet_b0", "weights": "data/weights/efficientnet_b0.safetensors"},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_abaw_rows_differ_from_the_whole_in_what_they_are_named_for(name, recipe):
    f1, options = ROWS[name]
    row = PARAMS.recipe(name)
    assert row.expected == {"affwild2": f1}
    assert row.model == recipe.model | options
    assert row.loss.weighting == ("none" if name.endswith("no-reweight") else "positive")
    assert (row.input, row.clip, row.phases, row.paper) == (recipe.input, recipe.clip, recipe.phases, "abaw-attention")
