"""models/_layers.py: the region layer is the published one."""

import pytest
import torch
from torch import nn

from aupipe.models._layers import PerAULinear, RegionLayer, fold_patches, merge_patches
from aupipe.models._stral_plain import PlainRegionLayer
from aupipe.schema import ConfigError


def region_layer(in_channels=3, channels=8, seed=0):
    torch.manual_seed(seed)
    layer = RegionLayer(in_channels, channels).double()
    with torch.no_grad():  # norms with nothing in common, so that a swapped patch shows
        for name, tensor in layer.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return layer


def plain_gradients(plain):
    """The plain form's gradients under the names of the fast form's parameters: patches side by side, in row-major order."""
    found = {
        f"{part}.{key}": value.grad for part in ("stem", "norm") for key, value in getattr(plain, part).named_parameters()
    }
    for grid, blocks in zip((8, 4, 2), plain.branches, strict=True):
        for key in ("weight", "bias"):
            found[f"norm_{grid}.{key}"] = torch.cat([getattr(block[0], key).grad for block in blocks])
            found[f"conv_{grid}.{key}"] = torch.cat([getattr(block[2], key).grad for block in blocks])
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_region_layer_equals_the_published_form(training, channels_last):
    fast = region_layer().train(training)
    plain = PlainRegionLayer(fast).train(training)
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)
    x = torch.randn(3, 3, 16, 24, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    if channels_last:
        inputs[0] = x.to(memory_format=torch.channels_last).requires_grad_()
    outputs = [layer(one) for layer, one in zip((fast, plain), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    direction = torch.randn_like(x[:, :1]).expand(-1, 8, -1, -1)
    for output in outputs:
        output.backward(direction)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-10)
    wanted = plain_gradients(plain)
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted.pop(name), rtol=0, atol=1e-10, msg=name)
    assert not wanted
    if training:
        running = torch.cat([block[0].running_mean for block in plain.branches[1]])
        torch.testing.assert_close(fast.norm_4.running_mean, running, rtol=0, atol=1e-12)


def test_region_layer_has_the_agreed_layout():
    layer = RegionLayer(3, 32)
    names = {name for name, _ in layer.named_children()}
    assert names == {"stem", "norm_8", "conv_8", "norm_4", "conv_4", "norm_2", "conv_2", "norm"}
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items() if tensor.ndim == 4}
    assert shapes == {
        "stem.weight": (32, 3, 3, 3),
        "conv_8.weight": (64 * 16, 32, 3, 3),
        "conv_4.weight": (16 * 8, 16, 3, 3),
        "conv_2.weight": (4 * 8, 8, 3, 3),
    }
    assert (layer.conv_8.groups, layer.conv_4.groups, layer.conv_2.groups) == (64, 16, 4)
    assert sum(p.numel() for p in layer.parameters()) == 322_464
    assert sum(p.numel() for p in RegionLayer(32, 64).parameters()) == 1_292_928


def test_a_patch_starts_as_wide_as_a_convolution_of_its_own():
    torch.manual_seed(0)
    fast, alone = RegionLayer(3, 32).conv_8.weight, nn.Conv2d(32, 16, 3).weight
    assert fast.abs().max().item() == pytest.approx(alone.abs().max().item(), rel=0.01)


def test_padding_stops_at_the_patch():
    layer = region_layer(1, 4).eval()
    with torch.no_grad():
        layer.stem.weight.zero_()[:, :, 1, 1] = 1  # each channel the input, so that only branches can mix places
        layer.conv_4.weight.zero_()
        x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
        touched = x.clone()
        touched[0, 0, 3, 3] += 1  # the corner of the patch of rows and columns 2 and 3
        places = torch.nonzero((layer(touched) - layer(x)).abs().amax((0, 1)) > 1e-9)
    assert places.min(0).values.tolist() == [2, 2]
    assert places.max(0).values.tolist() == [3, 3]


def test_patches_lie_in_row_major_order_with_channels_side_by_side():
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    folded = fold_patches(x, 4)
    for row in range(4):
        for column in range(4):
            patch = 4 * row + column
            expected = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(folded[:, 3 * patch : 3 * patch + 3], expected)
    assert torch.equal(merge_patches(folded, 4, 2), fold_patches(x, 2))
    assert torch.equal(merge_patches(folded, 4, 1), x)


@pytest.mark.parametrize(("H", "W"), [(12, 16), (16, 20), (0, 16)])
def test_sides_that_do_not_divide_are_refused(H, W):
    with pytest.raises(ConfigError, match=f"{H}×{W}.*multiples of 8"):
        RegionLayer(3, 4)(torch.zeros(1, 3, H, W))


@pytest.mark.parametrize("channels", [6, 0])
def test_channels_that_do_not_divide_are_refused(channels):
    with pytest.raises(ConfigError, match="multiple of 4"):
        RegionLayer(3, channels)


def test_every_au_has_a_linear_layer_of_its_own():
    heads = PerAULinear(3, 5)
    features = torch.randn(2, 4, 3, 5)
    alone = [nn.functional.linear(features[..., m, :], heads.weight[m : m + 1], heads.bias[m : m + 1]) for m in range(3)]
    torch.testing.assert_close(heads(features), torch.cat(alone, -1))
    assert heads(features.bfloat16()).dtype == torch.float32
    assert heads.weight.abs().max() <= 5**-0.5
    assert heads.weight.std() > 0.1
