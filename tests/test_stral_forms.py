"""models/stral.py: the fast forms equal the plain ones."""

import numpy as np
import pytest
import torch
from stral_models import PEARSON, build, frames

from aupipe.models._stral_attention import AttentionBranches, mean_of_conv
from aupipe.models._stral_graph import GraphLayer
from aupipe.models._stral_plain import PlainAttentionNetwork, PlainBranch, PlainGraphLayer
from aupipe.models.stral import relation_graph

# Fast forms equal the plain ones


def plain_name(name):
    """What a parameter of AttentionBranches is called in a PlainBranch."""
    part, *rest = name.split(".")
    if part in ("pre", "pre_norms"):
        return f"pre.{3 * int(rest[0]) + (part == 'pre_norms')}.{rest[1]}"
    return name.replace("weighted_norm", "norm")


def run_branches(branches, x, training):
    """Outputs, gradients by name and a running variance of AttentionBranches or of a list of PlainBranch."""
    x = x.clone().requires_grad_()
    if isinstance(branches, list):
        found = [branch.train(training)(x) for branch in branches]
        features, maps = torch.stack([f for f, _ in found], 1), torch.cat([a for _, a in found], 1)
    else:
        features, maps = branches.train(training)(x)
    weight = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
    ((features * weight).sum() + maps.square().sum()).backward()
    return {"features": features, "maps": maps, "input": x.grad}


ARL = {"channel_attention": True, "map_channels": 3}


@pytest.mark.parametrize("options", [{}, {"mask_after_relu": True}, {"feature_norm": True}, {"pre_layers": 1}, ARL])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["loop", "grouped"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_branches_looped_or_grouped_equal_the_plain_form(options, training, mode, channels_last):
    M, D = 3, 4
    torch.manual_seed(0)
    branches = AttentionBranches(M, D, mode=mode, **options).double()
    plain = [PlainBranch(branches, m) for m in range(M)]
    x = torch.randn(2, D, 5, 6, dtype=torch.float64)
    wanted = run_branches(plain, x, training)
    if channels_last:
        x, branches = x.to(memory_format=torch.channels_last), branches.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run_branches(branches, x, training), wanted, rtol=0, atol=1e-11)
    for name, parameter in branches.named_parameters():
        gradient = torch.cat([branch.get_parameter(plain_name(name)).grad for branch in plain])
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-10, msg=name)
    for key in ("running_mean", "running_var"):
        running = torch.cat([getattr(branch.norm, key) for branch in plain])
        torch.testing.assert_close(getattr(branches.weighted_norm, key), running, rtol=0, atol=1e-12)
    assert branches.weighted_norm.num_batches_tracked == int(training)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 4), (2, 2), (5, 7)])
@pytest.mark.parametrize("groups", [1, 3])
def test_mean_of_a_convolution_needs_no_convolution(h, w, groups):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4 * groups, 5 * groups, 3, padding=1, groups=groups).double()
    x = torch.randn(2, 4 * groups, h, w, dtype=torch.float64)
    expected = conv(x).mean((2, 3)).unflatten(1, (groups, 5))
    torch.testing.assert_close(mean_of_conv(x, conv.weight, conv.bias, groups), expected)
    torch.testing.assert_close(
        mean_of_conv(x.to(memory_format=torch.channels_last), conv.weight, conv.bias, groups), expected
    )


@pytest.mark.parametrize("training", [True, False])
def test_attention_stage_equals_the_plain_form(training):
    model = build("al").double().train(training)
    plain = PlainAttentionNetwork(model.attention).train(training)
    shots = frames(2, 2, 32, 16, dtype=torch.float64)
    output = model(shots)
    logits, maps = plain(shots.flatten(0, 1))
    torch.testing.assert_close(output.logits_BTM.flatten(0, 1), logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.attention_BTMhw.flatten(0, 1), maps, rtol=0, atol=1e-10)
    assert output.attention_BTMhw.shape == (2, 2, 4, 8, 4)
    assert output.aux_logits_BTM is None
    for found, attention in ((output.logits_BTM, output.attention_BTMhw), (logits, maps)):
        (found.square().sum() + attention.sum()).backward()
    for fast, drawn in zip((model.attention.region_1, model.attention.region_2), plain.regions, strict=True):
        torch.testing.assert_close(fast.stem.weight.grad, drawn.stem.weight.grad, rtol=1e-9, atol=1e-9)
        by_patch = torch.cat([block[2].weight.grad for block in drawn.branches[0]])
        torch.testing.assert_close(fast.conv_8.weight.grad, by_patch, rtol=1e-9, atol=1e-9)
    heads = torch.cat([head.weight.grad for head in plain.heads])
    torch.testing.assert_close(model.attention.heads.weight.grad, heads, rtol=1e-9, atol=1e-9)


GRAPH_OPTIONS = [{}, {"activation": "literal"}, {"orientation": "stgcn"}, {"adaptive": False}, {"edge_init": -0.4}]


@pytest.mark.parametrize("options", GRAPH_OPTIONS)
@pytest.mark.parametrize("temporal_kernel", [1, 5])
@pytest.mark.parametrize("training", [True, False])
def test_graph_layer_equals_the_plain_form(options, temporal_kernel, training):
    torch.manual_seed(0)
    layer = GraphLayer(4, 6, temporal_kernel, **options).double().train(training)
    plain = PlainGraphLayer(layer).train(training)
    partitions = torch.tensor(relation_graph(PEARSON).partitions_3MM)
    x = torch.randn(2, 7, 4, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0], partitions), plain(inputs[1].permute(0, 3, 1, 2), partitions).permute(0, 2, 3, 1)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-11)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-10)
    pairs = dict(plain.named_parameters())
    for name, parameter in layer.named_parameters():
        if name.startswith("spatial"):
            kind = name.split(".")[1]
            gradient = torch.cat([pairs.pop(f"spatial.{q}.{kind}").grad for q in range(3)]).view_as(parameter)
        else:
            gradient = pairs.pop(name).grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-10, msg=name)
    assert not pairs


def test_graph_layer_is_equation_7():
    torch.manual_seed(0)
    layer = GraphLayer(4, 3, 3, activation="literal").double()
    A = relation_graph(PEARSON).partitions_3MM
    W, Phi1, b1 = layer.edges.detach().numpy(), layer.spatial.weight.detach().numpy(), layer.spatial.bias.detach().numpy()
    Phi2, b2 = layer.temporal.weight.detach().numpy(), layer.temporal.bias.detach().numpy()
    F = np.random.default_rng(0).normal(size=(1, 4, 4, 3))  # time, AU, channel
    summed = np.zeros((6, 4, 3))  # a frame of zeros before and after
    for t in range(4):
        for q in range(3):
            summed[t + 1] += (np.tanh(W[q]) * A[q]) @ (F[0, t] @ Phi1[3 * q : 3 * q + 3].T + b1[3 * q : 3 * q + 3])
    out = np.stack([sum(summed[t + s] @ Phi2[:, :, s, 0].T for s in range(3)) + b2 for t in range(4)]) + F[0]
    torch.testing.assert_close(layer(torch.tensor(F), torch.tensor(A)).detach()[0], torch.tensor(out))


def test_equation_7_as_printed_makes_an_affine_map_and_the_default_does_not():
    defect = {}
    for activation in ("literal", "stgcn"):
        model = build(activation=activation).double().eval()
        a, b = torch.randn(2, 1, 5, 4, 8, dtype=torch.float64)
        with torch.no_grad():
            fa, fb, fab, f0 = (model(x).logits_BTM for x in (a, b, a + b, 0 * a))
        defect[activation] = ((fab - fa - fb + f0).abs().max() / fab.abs().max()).item()
    assert defect["literal"] < 1e-10
    assert defect["stgcn"] > 0.01
