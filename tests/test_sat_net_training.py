"""models/sat_net.py in training: its targets, its masks' losses, and where its weights start from."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sat_net_models import AUS, STATISTICS, VARIANTS, build, frames

from aupipe.config import LossConfig
from aupipe.facs import AUSet
from aupipe.loop import Sums
from aupipe.losses import loss_terms
from aupipe.metrics import Counts
from aupipe.models import build_model
from aupipe.schema import Batch, ConfigError, DataError


@pytest.mark.parametrize("mode", ["window", "stateful"])
def test_the_last_target_is_the_last_of_all(mode):
    outputs, gradients = [], []
    for targets in ("all", "last"):
        model = build(mode=mode, targets=targets).double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # its statistics are of all targets together
        output = model(frames(5, 2).double())
        outputs.append(type(output)._make(None if part is None else part[:, -1:] for part in output))
        outputs[-1].logits_BTM.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert output.logits_BTM.shape == (2, 1 if targets == "last" else 5, 3)
        assert model.eval()(frames(5, 2).double()).logits_BTM.shape == (2, 5, 3)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_frame_variants_have_all_targets():
    assert build("sa_net", targets="last").train()(frames(4, 2)).logits_BTM.shape == (2, 4, 3)


def test_loss_and_counts_of_the_last_target_are_of_the_last_labels():
    rng = np.random.default_rng(0)
    labels, mask = rng.integers(0, 2, (2, 5, 3)).astype(np.float32), rng.random((2, 5, 3)) < 0.8
    output = build(targets="last").train()(frames(5, 2))
    whole = output._replace(logits_BTM=torch.cat([torch.randn(2, 4, 3), output.logits_BTM], 1))
    last = mask.copy()
    last[:, :4] = False
    found = loss_terms(output, torch.tensor(labels), torch.tensor(mask), LossConfig(), {})
    wanted = loss_terms(whole, torch.tensor(labels), torch.tensor(last), LossConfig(), {})
    torch.testing.assert_close(found, wanted)
    nothing = np.zeros(2, np.int64)
    real = np.ones((2, 5), bool)
    counted = []
    for logits, coded in ((output.logits_BTM, mask), (whole.logits_BTM, last)):
        batch = Batch(np.zeros(0, np.uint8), labels, coded, nothing, nothing > 0, nothing, nothing, real)
        sums = Sums(Counts.zero(3))
        sums.add({}, logits, batch)
        counted.append(sums.counts.to_array())
    np.testing.assert_array_equal(*counted)
    assert counted[0].sum() > 0


def test_masks_learn_through_the_product_and_on_request_from_their_mean():
    labels, mask = torch.ones(1, 4, 3), torch.ones(1, 4, 3, dtype=torch.bool)
    model = build("sa_net").eval()
    shots = frames(4)
    output = model(shots)
    means = output.attention_BTMhw.mean((-1, -2))
    torch.testing.assert_close(output.aux_logits_BTM.sigmoid(), means, rtol=1e-4, atol=1e-5)
    assert list(loss_terms(output, labels, mask, LossConfig(), {})) == ["bce"]
    terms = loss_terms(output, labels, mask, LossConfig(auxiliary=0.5), {})
    assert terms["auxiliary"].item() == pytest.approx(-0.5 * means.log().mean().item(), rel=1e-4)
    masks, features = model.head.masks.weight, model.head.features.weight
    assert all(g.any() for g in torch.autograd.grad(terms["bce"], (masks, features), retain_graph=True))
    of_masks, of_features = torch.autograd.grad(terms["auxiliary"], (masks, features), allow_unused=True)
    assert of_masks.any()
    assert of_features is None
    with torch.no_grad():
        model.head.masks.bias.copy_(torch.tensor([-200.0, 0, 200]))
    assert torch.isfinite(model(shots).aux_logits_BTM).all(), "where the mean itself is 0 or 1"
    with pytest.raises(ConfigError, match=r"loss\.auxiliary needs a model with auxiliary logits"):
        loss_terms(build("resnet").eval()(shots), labels, mask, LossConfig(auxiliary=0.5), {})


# Starts


def test_variants_share_their_names():
    names = {variant: set(build(variant).state_dict()) for variant in VARIANTS}
    assert names["resnet"] < names["sa_net"] < names["sat_net"]
    assert names["resnet"] < names["t_net"] < names["sat_net"]
    assert {name.split(".")[0] for name in names["t_net"] - names["resnet"]} == {"fusion"}
    assert {name.rsplit(".", 1)[0] for name in names["sa_net"] - names["resnet"]} == {"head.masks"}


@pytest.mark.parametrize("origin", VARIANTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_phase_starts_from_another_variant(origin, variant):
    start, model = build(origin, seed=1), build(variant, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.start_from(start.state_dict(), AUS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start.state_dict().get(name, before[name])), name


def test_other_aus_start_from_their_own_rows_or_from_those_named():
    start, model = build(aus=AUSet((1, 2, 4, 10, 12))), build(aus=AUSet((1, 4, 9, 12)), seed=2)
    model.start_from(start.state_dict(), AUSet((1, 2, 4, 10, 12)), {9: 10})
    for name, given in start.head.state_dict().items():
        assert torch.equal(model.head.state_dict()[name], given[[0, 2, 3, 4]])
    with pytest.raises(ConfigError, match=r"AU09 has no branch to start from among AUs 1, 2, 4, 10, 12.*init.au_map"):
        model.start_from(start.state_dict(), AUSet((1, 2, 4, 10, 12)))


def test_weights_of_another_network_are_refused():
    weights = build(depth=34).state_dict()
    with pytest.raises(DataError, match=r"of another network: trunk\.layer\d"):
        build(depth=50).start_from(weights, AUS)
    with pytest.raises(DataError, match=r"of another network: trunk\.conv1\.weight is absent"):
        build().start_from({"extractor.0.weight": torch.zeros(1)}, AUS)


def test_the_trunk_starts_from_a_file_under_torchvisions_names(tmp_path):
    given = {k: torch.rand_like(v.float()).to(v.dtype) for k, v in build().trunk.state_dict().items()}
    file = tmp_path / "resnet18.safetensors"
    save_file({**given, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, file)
    trunk = build_model("sat_net", {"weights": str(file)}, AUS, STATISTICS).trunk
    assert all(torch.equal(tensor, given[name]) for name, tensor in trunk.state_dict().items())
    with pytest.raises(DataError, match=r"nowhere\.safetensors are not here.*docs/models.md"):
        build(weights=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(DataError, match="of another network"):
        build(weights=str(file), depth=34)
