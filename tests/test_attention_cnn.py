"""models/attention_cnn.py on a backbone: ABAW-2022's rows with pretrained extractors. test_models.py has the rest."""

import pytest
import torch
from conftest import AUS, STATS
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from aupipe.facs import AU_SETS
from aupipe.models import build_model, check_config
from aupipe.models._backbones import TRUNKS
from aupipe.schema import ConfigError, DataError, LabelStats

STATISTICS = LabelStats.from_json(STATS)
BACKBONES = {"resnet50": (2048, 4), "inception_v3": (2048, 2), "efficientnet_b0": (1280, 4)}  # channels, places on a side
PARAMETERS = {"resnet50": 23_795_277, "inception_v3": 22_072_813, "efficientnet_b0": 4_187_273}  # 12 AUs
GMAC = {"resnet50": 1.0801, "inception_v3": 0.5374, "efficientnet_b0": 0.1089}  # of a frame of 112 pixels


def build(backbone, aus=AUS, seed=0, **options):
    torch.manual_seed(seed)
    options = options if "weights" in options else {"random": True, **options}
    return build_model("attention_cnn", {"backbone": backbone, **options}, aus, STATISTICS)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_size_map_and_cost_at_112_pixels(backbone):
    channels, side = BACKBONES[backbone]
    model = build(backbone, aus=AU_SETS["affwild2"]).eval()
    output = model(torch.rand(1, 2, 3, 112, 112))
    assert output.logits_BTM.shape == (1, 2, 12)
    assert output.attention_BTMhw.shape == (1, 2, 12, side, side)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone]
    attention = (channels * 128 + 128) + (128 * 2) + (128 + 1)
    trunk = sum(p.numel() for p in TRUNKS[backbone]().parameters())
    assert trunk + attention + channels * 12 + 12 == PARAMETERS[backbone]
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.zeros(1, 1, 3, 112, 112, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(GMAC[backbone], abs=6e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pixels_are_scaled_as_the_backbone_wants_them(backbone):
    model, trunk = build(backbone), TRUNKS[backbone]()
    assert (model.MEAN, model.STD) == (trunk.MEAN, trunk.STD)
    own = build_model("attention_cnn", {}, AUS, STATISTICS)
    assert (own.MEAN, own.STD) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(("frozen", "attention"), [(True, True), (True, False), (False, True)])
def test_attention_and_head_learn_on_a_frozen_backbone(frozen, attention):
    model = build("efficientnet_b0", frozen=frozen, attention=attention).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(torch.rand(2, 2, 3, 64, 64)).logits_BTM.sub(1).square().sum().backward()
    optimiser.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("extractor.") for name in changed) != frozen
    assert {"head.weight", "head.bias"} <= changed
    assert ("attention.hidden.weight" in changed) == attention


def test_logits_are_the_head_of_the_attended_map():
    model = build("resnet50").eval()
    frames = torch.rand(1, 2, 3, 64, 64)
    features = model.extractor.trunk(frames[0])
    weights = model.attention(features).view(2, 1, 2, 2)
    torch.testing.assert_close(model(frames).logits_BTM[0], model.head((features * weights).sum((2, 3))))


def test_weights_come_from_the_file(tmp_path):
    torch.manual_seed(5)
    origin = TRUNKS["efficientnet_b0"]()
    path = str(tmp_path / "b0.safetensors")
    save_file(origin.state_dict() | {"classifier.1.weight": torch.zeros(1000, 1280)}, path)
    model = build("efficientnet_b0", weights=path)
    assert all(torch.equal(tensor, origin.state_dict()[name]) for name, tensor in model.extractor.trunk.state_dict().items())
    with pytest.raises(DataError, match="not here"):
        build("efficientnet_b0", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backbone": "resnet50"}, r"resnet50 has no weights: .*snippet in docs/models\.md, or set model\.random"),
        ({"backbone": "resnet50", "random": True, "weights": "x"}, "one of the two"),
        ({"backbone": "vgg16", "random": True}, "unknown backbone 'vgg16'; known are none, resnet50, inception_v3, effic"),
        ({"weights": "x"}, "name one in model.backbone"),
        ({"random": True}, "name one in model.backbone"),
    ],
)
def test_a_backbone_without_weights_is_refused_before_it_is_built(options, reason):
    with pytest.raises(ConfigError, match=reason):
        check_config("attention_cnn", options)


def test_faces_too_small_for_inception_are_refused():
    with pytest.raises(ConfigError, match="at least 75 pixels, not 64×64"):
        build("inception_v3").eval()(torch.rand(1, 1, 3, 64, 64))
