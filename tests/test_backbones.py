"""models/_resnet, _inception, _efficientnet, _backbones: torchvision's networks to the name, the number and the value."""

import hashlib
from functools import partial

import pytest
import torch
from backbone_weights import fill, images
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aupipe.models._backbones import TRUNKS, Backbone
from aupipe.models._efficientnet import EfficientNetB0, MBConv
from aupipe.models._inception import InceptionV3
from aupipe.models._resnet import ResNet
from aupipe.models._weights import IMAGENET_MEAN, IMAGENET_STD
from aupipe.schema import ConfigError

PARAMETERS = {  # as published, less the classifier
    "resnet18": 11_689_512 - 512 * 1000 - 1000,
    "resnet34": 21_797_672 - 512 * 1000 - 1000,
    "resnet50": 25_557_032 - 2048 * 1000 - 1000,
    "inception_v3": 23_834_568 - 2048 * 1000 - 1000,
    "efficientnet_b0": 5_288_548 - 1280 * 1000 - 1000,
}
# Published GMAC of an image of 224 pixels (299 for Inception V3), classifier included.
GMAC = {"resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "inception_v3": 5.713, "efficientnet_b0": 0.386}
GMAC_112 = {"resnet18": 0.4848, "resnet34": 0.9650, "resnet50": 1.0759, "inception_v3": 0.5364, "efficientnet_b0": 0.1062}
MAPS_112 = {"resnet18": (512, 4), "resnet34": (512, 4), "resnet50": (2048, 4), "inception_v3": (2048, 2)}
MAPS_112 |= {"efficientnet_b0": (1280, 4)}
# sha256 of "name shape" lines, sorted, of torchvision 0.29.2's own state dicts less the classifiers …
NAMES = {
    "resnet18": (120, "504739f3083bec5e"),
    "resnet34": (216, "44a0fd3c2ef0c9ed"),
    "resnet50": (318, "c1f7fd3808aa49e7"),
    "inception_v3": (564, "5c5cb906421dd921"),
    "efficientnet_b0": (358, "188ac9aab15123a7"),
}
# … and what its networks make of these weights and images in float64: mean, deviation and two values of the last map.
VALUES = {
    "resnet18": (4.1702314877057445, 5.0341159304634715, 2.529427771852395, 8.65941860915229),
    "resnet34": (3.761385503540386, 4.47226188770357, 3.700560484290474, 0.28340888478572923),
    "resnet50": (11.933416149905263, 16.221046777508523, 51.53718251641223, 17.34225457968847),
    "inception_v3": (0.6051582366844704, 1.4756875462661005, 0.6479289071678848, 9.346136953117753),
    "efficientnet_b0": (2.2368448293310244, 2.9590412220346693, -0.07618166774621397, 9.014940438900222),
}


@pytest.fixture(params=TRUNKS, name="kind", scope="module")
def _kind(request):
    return request.param


@pytest.fixture(name="trunk", scope="module")
def _trunk(kind):
    return TRUNKS[kind]().eval()


def gmac(trunk, side):
    with FlopCounterMode(display=False) as counter:
        trunk.to("meta")(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2e9


def test_size_is_the_published_one(kind, trunk):
    assert sum(p.numel() for p in trunk.parameters()) == PARAMETERS[kind]


def test_names_and_shapes_are_torchvisions(kind, trunk):
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in trunk.state_dict().items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == NAMES[kind]


@torch.no_grad()
def test_values_are_torchvisions(kind):
    out = fill(TRUNKS[kind]().double().eval())(images(112))
    assert out.shape == (2, MAPS_112[kind][0], MAPS_112[kind][1], MAPS_112[kind][1])
    flat = out.flatten()
    chosen = flat[:: len(flat) // 4]
    assert [x.item() for x in (flat.mean(), flat.std(), chosen[1], chosen[2])] == pytest.approx(VALUES[kind], rel=1e-9)


def test_cost_is_the_published_one_and_known_at_112_pixels(kind):
    trunk = TRUNKS[kind]().eval()
    classifier = trunk.channels * 1000 / 1e9
    assert gmac(trunk, 299 if kind == "inception_v3" else 224) + classifier == pytest.approx(GMAC[kind], abs=6e-4)
    assert gmac(trunk, 112) == pytest.approx(GMAC_112[kind], abs=6e-5)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_can_be_left_after_its_second_stage(depth):
    trunk, x = ResNet(depth).eval(), torch.rand(1, 3, 64, 64)
    early = trunk.early(x)
    assert early.shape == (1, trunk.stage_channels[1], 8, 8)
    assert trunk.stage_channels[3] == trunk.channels
    kept = early.clone()
    assert torch.equal(trunk.late(early), trunk(x))
    assert torch.equal(early, kept), "late leaves the map as it was"


def test_a_resnet_of_another_depth_is_refused():
    with pytest.raises(ConfigError, match="18, 34, 50, not 101"):
        ResNet(101)


def test_inception_needs_75_pixels():
    trunk = InceptionV3().eval()
    assert trunk(torch.zeros(1, 3, 75, 80)).shape[2] == 1
    with pytest.raises(ConfigError, match="at least 75 pixels, not 80×74"):
        trunk(torch.zeros(1, 3, 80, 74))


def test_inputs_are_what_the_published_weights_were_made_with():
    for kind in ("resnet18", "resnet50", "efficientnet_b0"):
        trunk = TRUNKS[kind]()
        assert (trunk.MEAN, trunk.STD) == (IMAGENET_MEAN, IMAGENET_STD)
    # TensorFlow's: x·(0.229/0.5) + (0.485 − 0.5)/0.5 of an ImageNet-normalised x is what torchvision feeds its Inception.
    raw = torch.rand(3)
    normalised = (raw - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    fed = normalised * torch.tensor(IMAGENET_STD) / 0.5 + (torch.tensor(IMAGENET_MEAN) - 0.5) / 0.5
    torch.testing.assert_close((raw - torch.tensor(InceptionV3.MEAN)) / torch.tensor(InceptionV3.STD), fed)


def test_training_leaves_blocks_of_the_efficientnet_out():
    torch.manual_seed(0)
    block, x = MBConv(8, 8, 6, 3, 1, drop=0.25).eval(), torch.rand(400, 8, 4, 4)
    change = block(x) - x
    block.train()
    block.block.eval()  # without BatchNorm's own difference between training and testing
    part = ((block(x) - x) / change).flatten(1).median(1).values
    assert set(part.mul(3).round().tolist()) == {0, 4}, "an image gets none of the block, or 1 / (1 − 0.25) of it"
    assert (part == 0).float().mean() == pytest.approx(0.25, abs=0.08)
    drops = [layer.drop for layer in EfficientNetB0().modules() if isinstance(layer, MBConv)]
    assert drops == pytest.approx([0.2 * k / 16 for k in range(16)])


@pytest.mark.parametrize("make", [partial(ResNet, 18), EfficientNetB0, InceptionV3])
def test_a_frozen_backbone_stays_as_it_is_and_a_tuned_one_learns(make):
    x = torch.rand(2, 3, 80, 80)
    for frozen in (True, False):
        backbone = Backbone(make(), None, frozen)
        model = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(backbone.channels, 1)).train()
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        model(x).square().sum().backward()
        optimiser.step()
        changed = [name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])]
        assert changed == [] if frozen else any("running_mean" in name for name in changed)
        assert any(name.endswith("weight") for name in changed) != frozen
        assert any(layer.training for layer in backbone.modules()) != frozen


def test_random_weights_that_stay_let_images_through(kind):
    torch.manual_seed(0)
    raw = TRUNKS[kind]()
    backbone = Backbone(raw, None, frozen=True)
    smooth = nn.functional.interpolate(torch.randn(8, 3, 6, 6), size=(96, 96), mode="bicubic")
    between = backbone.train()(smooth).mean((2, 3)).std(0)
    assert 0.02 < between.mean() < 5, "images differ in what is left of them"
    assert {layer.momentum for layer in raw.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}


def test_weights_follow_the_seed(kind):
    def draw(seed):
        torch.manual_seed(seed)
        return next(TRUNKS[kind]().parameters())

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
