"""models/_conv_lstm.py: the fast forms equal the equations, forward and gradient; windows are windows."""

import numpy as np
import pytest
import torch
from counting import count, multiplications
from torch import nn

from aupipe.models._conv_lstm import ConvLSTM, PlainConvLSTM
from aupipe.schema import ConfigError


def make(channels=3, kernel=3, dtype=torch.float64, seed=0):
    """A ConvLSTM whose gates are all at work: biases of every size."""
    torch.manual_seed(seed)
    layer = ConvLSTM(channels, kernel).to(dtype)
    nn.init.normal_(layer.of_input.bias)
    return layer


def maps(T, B=2, C=3, h=4, w=5, dtype=torch.float64, seed=1):
    return torch.randn(T, B, C, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def results(layer, call, x):
    """Output, gradients of the input and of the weights as one convolution of x and h, of a loss that sees every value."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = call(x)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    if isinstance(layer, PlainConvLSTM):
        return output, x.grad, layer.weight.grad, layer.bias.grad
    of_state = layer.of_state.weight
    weight = [layer.of_input.weight.grad, torch.zeros_like(of_state) if of_state.grad is None else of_state.grad]
    return output, x.grad, torch.cat(weight, 1), layer.of_input.bias.grad


def test_one_step_by_hand():
    layer = make(2, kernel=1)
    Wx, Wh = (conv.weight.detach().numpy()[:, :, 0, 0] for conv in (layer.of_input, layer.of_state))
    b, x = layer.of_input.bias.detach().numpy(), maps(3, 1, 2, 1, 1).numpy()[:, 0, :, 0, 0]
    h = c = np.zeros(2)
    for t in range(3):
        i, f, o, g = (Wx @ x[t] + Wh @ h + b).reshape(4, 2)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        found, state = layer(torch.tensor(x[: t + 1])[:, None, :, None, None])
        np.testing.assert_allclose(found[-1].detach().flatten(), h, rtol=1e-12)
        np.testing.assert_allclose(state[1].detach().flatten(), c, rtol=1e-12)


@pytest.mark.parametrize("T", [1, 2, 7])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sequence_equals_the_plain_form(T, kernel, channels_last):
    layer = make(kernel=kernel)
    wanted = results(plain := PlainConvLSTM(layer), plain, maps(T))
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    found = results(layer, lambda x: layer(x)[0], maps(T))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_of_all_frames_equal_the_plain_form_one_by_one(T, length, channels_last):
    layer = make()
    wanted = results(plain := PlainConvLSTM(layer), lambda x: plain.last_of_windows(x, length), maps(T))
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    found = results(layer, lambda x: layer.last_of_windows(x, length), maps(T))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count_", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 3, 8])
def test_windows_of_the_last_frames_are_the_last_of_all_windows(count_, length):
    layer, x = make(), maps(6)
    wanted = results(layer, lambda x: layer.last_of_windows(x, length)[-count_:], x)
    torch.testing.assert_close(results(layer, lambda x: layer.last_of_windows(x, length, count_), x)[0], wanted[0])
    gradients = []
    for call in (lambda x: layer.last_of_windows(x, length)[-count_:], lambda x: layer.last_of_windows(x, length, count_)):
        seen = x.clone().requires_grad_()
        call(seen).square().sum().backward()
        gradients.append(seen.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    before = max(0, 6 - count_ - length + 1)
    assert not gradients[1][:before].any()
    assert gradients[1][before:].flatten(1).any(1).all()


def test_single_precision_is_close_to_the_plain_form():
    layer, x = make(8, dtype=torch.float32), maps(12, 2, 8, dtype=torch.float32)
    for fast, plain in ((lambda x: layer(x)[0], PlainConvLSTM(layer)), (lambda x: layer.last_of_windows(x, 4), None)):
        call = plain or (lambda x: PlainConvLSTM(layer).last_of_windows(x, 4))
        torch.testing.assert_close(fast(x), call(x), rtol=0, atol=1e-6)


def test_bf16_is_close_and_sums_in_single_precision():
    layer, x = make(8, dtype=torch.float32), maps(40, 1, 8, dtype=torch.float32)
    exact = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough, (h, c) = layer(x)
    assert h.dtype == torch.bfloat16
    assert c.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.03


def test_a_state_goes_on_where_the_sequence_was_cut():
    layer, x = make(), maps(9)
    whole, (h, c) = layer(x)
    state, parts = None, []
    for part in x.split([1, 5, 3]):
        output, state = layer(part, state)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state, (h, c))
    assert torch.equal(h, whole[-1])


def test_maps_of_any_size_go_through_the_same_weights():
    layer = make()
    for h, w in ((1, 1), (2, 9), (7, 7)):
        assert layer(maps(2, h=h, w=w))[0].shape == (2, 2, 3, h, w)


def test_forget_gates_start_open_and_weights_as_one_convolution():
    torch.manual_seed(0)
    layer = ConvLSTM(16)
    i, f, o, g = layer.of_input.bias.detach().chunk(4)
    assert (f == 1).all()
    assert not torch.cat([i, o, g]).any()
    for conv in (layer.of_input, layer.of_state):
        assert conv.weight.abs().max().item() == pytest.approx((2 * 16 * 9) ** -0.5, rel=1e-3)
    assert count(layer) == 4 * 16 * (2 * 16 * 9 + 1)


def test_windows_share_the_convolution_of_the_input():
    layer = make(4, dtype=torch.float32)
    length, one = 8, 4 * 16 * 9 * 6 * 6  # the convolution of a map of x or h

    class Windows(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer.last_of_windows(x, length)

    assert multiplications(Windows(PlainConvLSTM(layer)), 10, 1, 4, 6, 6) == 10 * length * 2 * one
    assert multiplications(Windows(layer), 10, 1, 4, 6, 6) == 10 * length * one


def error_after_training(length, steps=150):
    """Trained to give back the map of two frames before, whose values are 0 or 1."""
    torch.manual_seed(0)
    layer, read = ConvLSTM(4), nn.Conv2d(4, 1, 1)
    optimiser = torch.optim.Adam([*layer.parameters(), *read.parameters()], 0.03)
    for step in range(steps + 1):
        x = (torch.rand(12, 2, 1, 3, 3, generator=torch.Generator().manual_seed(step)) < 0.5).float()
        logits = read(layer.last_of_windows(x.expand(-1, -1, 4, -1, -1), length).flatten(0, 1)).view(12, 2, 1, 3, 3)[2:]
        if step == steps:
            return ((logits > 0) != (x[:-2] > 0)).float().mean().item()
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, x[:-2]).backward()
        optimiser.step()


def test_a_window_reads_as_far_back_as_it_is_long():
    assert error_after_training(3) < 0.05
    assert error_after_training(2) > 0.35


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ConfigError, match=f"must be odd.*got {kernel}"):
        ConvLSTM(4, kernel)
