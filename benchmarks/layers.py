"""Layers, ours against the plain form in fp32: STRAL's as its figures draw them, patch by patch, AU by AU and frame by
frame, and SAT-Net's ConvLSTM step by step and window by window, each step convolving x and h as one map.

Forward, and forward with backward, at full size (12 AUs, 176 pixels), all forms in turns in one run; the least of the turns
counts, for a busy machine only adds. On CPUs run it as a training runs, with the allocator keeping its memory:
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/layers.py [FRAMES] [TURNS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.facs import AU_SETS
from aupipe.losses import attention_sparsity, weighted_bce
from aupipe.models import AUOutput, build_model
from aupipe.models._conv_lstm import ConvLSTM, PlainConvLSTM
from aupipe.models._stral_attention import pool_rectified
from aupipe.models._stral_plain import PlainAttentionNetwork, PlainBranch, PlainGraphLayer, PlainRegionLayer
from aupipe.schema import LabelStats

AUS, SIDE, CLIP, WINDOW = AU_SETS["bp4d"], 176, 48, 8
Form = tuple[Callable[[Tensor], Tensor], Tensor, bool]  # what is timed, its input, whether in bf16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(frames: int = 8, turns: int = 5) -> None:
    torch.manual_seed(0)
    correlations = np.random.default_rng(0).uniform(0, 0.3, (len(AUS), len(AUS)))
    stats = LabelStats(np.full(len(AUS), 0.3), (correlations + correlations.T) / 2, np.full(len(AUS), 100))
    model = build_model("stral", {}, AUS, stats).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.freeze_attention(False)
    threads = f"{torch.get_num_threads()} threads" if DEVICE == "cpu" else torch.cuda.get_device_name()
    print(f"{frames} frames of {SIDE} pixels, {len(AUS)} AUs, graph over clips of {CLIP}; {threads}; ms, times faster")
    compare("two region layers, each with its max-pool", region_forms(model, frames), turns)
    compare(f"{len(AUS)} AU branches", branch_forms(model, frames), turns)
    for clips in (1, 8):
        compare(f"eight G^st layers, {clips} clips", graph_forms(model, clips), turns)
    compare("step of the attention stage", step_forms(model, frames), turns)
    compare(f"ConvLSTM, one pass over {frames} frames", conv_lstm_forms(frames, None), turns)
    compare(f"ConvLSTM, a window of {WINDOW} for each of {frames} frames", conv_lstm_forms(frames, WINDOW), turns)


def compare(title: str, forms: dict[str, Form], turns: int) -> None:
    """Time the forms in turns; the first is the plain one."""
    print(title)
    for backward in (False, True):
        least = dict.fromkeys(forms, float("inf"))
        for turn in range(turns + 1):
            for name, form in forms.items():
                seconds = time_once(*form, backward=backward)
                least[name] = min(least[name], seconds) if turn else least[name]  # the first turn warms up
        plain = next(iter(least.values()))
        for name, seconds in least.items():
            kind = "forward+backward" if backward else "forward"
            print(f"  {kind:16s} {name:22s} {1e3 * seconds:9.1f}   {plain / seconds:5.2f}")


def time_once(function: Callable[[Tensor], Tensor], x: Tensor, bf16: bool, *, backward: bool) -> float:
    started = clock()
    with torch.set_grad_enabled(backward), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        result = function(x)
    if backward:
        result.float().mean().backward()
    return clock() - started


def clock() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def region_forms(model: Any, frames: int) -> dict[str, Form]:
    ours = [model.attention.region_1, model.attention.region_2]
    plain = [PlainRegionLayer(layer).to(DEVICE) for layer in ours]
    x = torch.randn(frames, 3, SIDE, SIDE, device=DEVICE)

    def run_plain(x: Tensor) -> Tensor:
        return F.max_pool2d(plain[1](F.max_pool2d(plain[0](x), 2)), 2)

    def run_ours(x: Tensor) -> Tensor:
        return pool_rectified(ours[1].unrectified(pool_rectified(ours[0].unrectified(x))))

    return in_both_precisions(run_plain, run_ours, x)


def branch_forms(model: Any, frames: int) -> dict[str, Form]:
    ours = model.attention.branches
    plain = [PlainBranch(ours, m).to(DEVICE) for m in range(len(AUS))]
    x = torch.randn(frames, 64, SIDE // 4, SIDE // 4, device=DEVICE, requires_grad=True)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()

    def one_by_one(x: Tensor) -> Tensor:
        features, maps = zip(*(branch(x) for branch in plain), strict=True)
        return torch.cat(features, 1).float().mean() + torch.cat(maps, 1).float().mean()

    def together(mode: str) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            ours.mode = mode
            features, maps = ours(x)
            return features.float().mean() + maps.float().mean()

        return run

    forms: dict[str, Form] = {"plain": (one_by_one, x, False), "plain, bf16": (one_by_one, x, True)}
    for mode in ("loop", "grouped"):
        forms |= {f"ours, {mode}": (together(mode), last, False), f"ours, {mode}, bf16": (together(mode), last, True)}
    return forms


def graph_forms(model: Any, clips: int) -> dict[str, Form]:
    layers, partitions = list(model.relations.layers), model.relations.partitions_3MM
    plain = [PlainGraphLayer(layer).to(DEVICE) for layer in layers]
    x = torch.randn(clips, CLIP, len(AUS), 64, device=DEVICE, requires_grad=True)
    x_NDTM = x.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()

    def stack(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x, partitions)
            return x

        return run

    return {
        "plain": (stack(plain), x_NDTM, False),
        "ours": (stack(layers), x, False),
        "ours, bf16": (stack(layers), x, True),
    }


def step_forms(model: Any, frames: int) -> dict[str, Form]:
    """The loss of eq. 3 on one frame each of `frames` clips, without the optimiser."""
    ours = model.attention
    ours.branches.mode = "auto"
    plain = PlainAttentionNetwork(ours).to(DEVICE)
    x = torch.randn(frames, 3, SIDE, SIDE, device=DEVICE)
    labels = (torch.rand(frames, len(AUS), device=DEVICE) < 0.3).float()

    def loss(logits: Tensor, maps: Tensor) -> Tensor:
        output = AUOutput(logits, maps)
        return weighted_bce(output.logits_BTM, labels, labels > -1) + 1e-4 * attention_sparsity(maps)

    def run_plain(x: Tensor) -> Tensor:
        return loss(*plain(x))

    def run_ours(x: Tensor) -> Tensor:
        features, maps = ours(x)
        return loss(ours.heads(features), maps)

    return in_both_precisions(run_plain, run_ours, x)


def conv_lstm_forms(frames: int, window: int | None) -> dict[str, Form]:
    """SAT-Net's with 18 layers, after the trunk's second block; `window` None: its stateful mode."""
    ours = ConvLSTM(128).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = PlainConvLSTM(ours).to(DEVICE)
    x = torch.randn(frames, 1, 128, SIDE // 8, SIDE // 8, device=DEVICE).relu().requires_grad_()
    if window is None:
        return in_both_precisions(plain, lambda x: ours(x)[0], x)
    return in_both_precisions(lambda x: plain.last_of_windows(x, window), lambda x: ours.last_of_windows(x, window), x)


def in_both_precisions(plain: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Form]:
    forms = {"plain": plain, "ours": ours}
    return {name + ", bf16" * bf16: (form, x, bf16) for name, form in forms.items() for bf16 in (False, True)}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
