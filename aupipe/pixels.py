"""From aligned faces, uint8, to what a model reads: cut or augmented, then normalised. On the device.

Augmentation makes a detector that was trained on one kind of faces read another. A clip's changes are drawn from its own
seed, so they are the same for one worker or many; its frames share all of them but the noise. How widely they are drawn
was chosen for training on rendered faces (docs/log.md has the ablation).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.config import InputSpec
from aupipe.schema import Batch

_LUMINANCE = (0.299 / 255, 0.587 / 255, 0.114 / 255)
_DRAWS = 24  # standard normal numbers per clip
_GREY, _BLURRED, _COVERED = 0.3, 0.4, 0.35  # shares of the clips
_DARKEST = 0.05  # added to an image's deviation, so that a black frame stays finite


def read_frames(batch: Batch, model: nn.Module, spec: InputSpec, device: str, *, train: bool) -> Tensor:
    """A batch's faces as frames_BTCHW: the clip's crop and mirror or, in training on request, its augmentation."""
    faces = batch.frames_BTHWC
    whole = (faces if isinstance(faces, Tensor) else torch.from_numpy(faces)).to(device, non_blocking=True)
    if train and spec.augment == "strong":
        frames = augment(read_channels(whole, spec.normalise), torch.from_numpy(batch.seed_B), spec.crop)
        # A frame without a face stays black, as in prediction: noise and covers would make something of it.
        frames = frames.masked_fill((whole.flatten(2).amax(2) == 0)[..., None, None, None], 0)
    else:
        part = cut(whole, torch.from_numpy(batch.crop_B2), torch.from_numpy(batch.mirror_B), spec.crop)
        frames = read_channels(part, spec.normalise)
    return normalise(shrink(frames, spec.resize), model, spec.normalise)


def read_middle(faces_NHWC: Tensor, model: nn.Module, spec: InputSpec) -> Tensor:
    """Aligned faces (N, H, W, 3) uint8 as (N, 3, h, w), as outside training: the middle, shrunk and normalised."""
    edge = (faces_NHWC.shape[1] - spec.crop) // 2
    middle = faces_NHWC[:, edge : edge + spec.crop, edge : edge + spec.crop]
    return normalise(shrink(read_channels(middle, spec.normalise), spec.resize), model, spec.normalise)


def cut(frames_BTHWC: Tensor, corner_B2: Tensor, mirror_B: Tensor, crop: int) -> Tensor:
    """The square of `crop` pixels from each clip's corner (top, left), mirrored where the clip says so."""
    corners = corner_B2.tolist()
    frames = torch.stack([clip[:, y : y + crop, x : x + crop] for clip, (y, x) in zip(frames_BTHWC, corners, strict=True)])
    return torch.where(mirror_B.to(frames.device)[:, None, None, None, None], frames.flip(3), frames)


def read_channels(frames_uint8: Tensor, kind: str) -> Tensor:
    """(…, H, W, 3) uint8 → (…, 3, H, W) float in 0–1, channels last in memory; for `grey` (…, 1, H, W), the luminance of
    ITU-R BT.601: the colour of skin and light is not to matter.
    """
    if kind == "grey":
        return (frames_uint8.float() @ torch.tensor(_LUMINANCE, device=frames_uint8.device)).unsqueeze(-3)
    return frames_uint8.float().mul_(1 / 255).movedim(-1, -3)


def shrink(frames: Tensor, size: int | None) -> Tensor:
    """(…, C, H, W) → (…, C, size, size) by the means of areas, or unchanged."""
    if size is None or size == frames.shape[-1]:
        return frames
    flat = F.interpolate(frames.reshape(-1, *frames.shape[-3:]), size=(size, size), mode="area")
    return flat.view(*frames.shape[:-2], size, size)


def normalise(frames: Tensor, model: nn.Module, kind: str) -> Tensor:
    """(…, C, H, W) in 0–1 → (…, 3, H, W) by the model's MEAN and STD, or each image by its own mean and deviation; a grey
    image then fills all three channels.
    """
    if kind == "model":
        mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (model.MEAN, model.STD))
        return (frames - mean) / std
    deviation, mean = torch.std_mean(frames, (-3, -2, -1), keepdim=True)
    return ((frames - mean) / (deviation + _DARKEST)).expand(*frames.shape[:-3], 3, -1, -1)


def augment(frames_BTCHW: Tensor, seed_B: Tensor, crop: int) -> Tensor:
    """Whole aligned faces, 0–1, of one or three channels → (B, T, C, crop, crop); noise and contrast may leave 0–1.

    Turned, scaled, shifted, mirrored; grey, gamma, contrast, brightness, colour cast; blurred, partly covered, noisy.
    """
    B, T = frames_BTCHW.shape[:2]
    device = frames_BTCHW.device
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seed_B]
    normal_BD = torch.stack([torch.randn(_DRAWS, generator=g) for g in generators]).to(device)
    noise = torch.stack([torch.randn(T, 1, crop, crop, generator=g) for g in generators]).to(device)
    frames = _move(frames_BTCHW.flatten(0, 1), normal_BD[:, :7].repeat_interleave(T, 0), crop).unflatten(0, (B, T))
    frames = _relight(frames, normal_BD[:, 7:14])
    frames = _blur(frames, _uniform(normal_BD[:, 14]), _uniform(normal_BD[:, 15]))
    frames = _cover(frames, _uniform(normal_BD[:, 16:23]))
    return frames + noise * (0.035 * _uniform(normal_BD[:, 23])).view(B, 1, 1, 1, 1)


def _uniform(normal: Tensor) -> Tensor:
    """Standard normal numbers → uniform in 0–1."""
    return torch.special.ndtr(normal)


def _move(frames_NCHW: Tensor, normal_ND: Tensor, crop: int) -> Tensor:
    """A random similarity, slightly squeezed, about the centre; 6°, 7 %, 2.5 pixels of standard deviation."""
    turn, grow, squeeze, right, down, mirror, _ = normal_ND.unbind(1)
    size = frames_NCHW.shape[-1]
    angle, scale, squeeze = turn * math.radians(6), torch.exp(0.07 * grow) * crop / size, torch.exp(0.04 * squeeze)
    side = torch.where(mirror < 0, -1.0, 1.0)
    shift = 2 * 2.5 / size
    row_x = torch.stack([angle.cos() * scale * squeeze * side, -angle.sin() * scale, right * shift], 1)
    row_y = torch.stack([angle.sin() * scale * side, angle.cos() * scale / squeeze, down * shift], 1)
    shape = [len(frames_NCHW), frames_NCHW.shape[1], crop, crop]
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), shape, align_corners=False)
    return F.grid_sample(frames_NCHW, grid, padding_mode="border", align_corners=False)


def _relight(frames_BTCHW: Tensor, normal_BD: Tensor) -> Tensor:
    """Another camera and light: greyness, gamma, contrast about the middle, brightness, a colour cast."""
    grey, gamma, contrast, brightness, *cast = normal_BD[..., None, None, None, None].unbind(1)
    mean = frames_BTCHW.mean(2, keepdim=True)
    frames = torch.where(_uniform(grey) < _GREY, mean, frames_BTCHW)
    frames = frames.clamp(1e-3, 1) ** torch.exp(0.35 * gamma)
    frames = (frames - 0.5) * torch.exp(0.2 * contrast) + 0.5 + 0.1 * brightness
    return frames * torch.exp(0.08 * torch.cat(cast[: frames.shape[2]], 2))


def _blur(frames_BTCHW: Tensor, chosen_B: Tensor, amount_B: Tensor) -> Tensor:
    """Mix a share of the clips with a blurred copy of themselves, two means of 3 × 3 pixels."""
    chosen = torch.nonzero(chosen_B < _BLURRED).flatten()
    sharp = frames_BTCHW[chosen]
    soft = sharp.flatten(0, 1)
    for _ in range(2):
        soft = F.avg_pool2d(soft, 3, 1, 1, count_include_pad=False)
    mixed = torch.lerp(sharp, soft.view_as(sharp), amount_B[chosen].view(-1, 1, 1, 1, 1))
    return frames_BTCHW.index_copy(0, chosen, mixed)


def _cover(frames_BTCHW: Tensor, uniform_BD: Tensor) -> Tensor:
    """Put a plain rectangle, a tenth to a third of the picture wide and high, over a share of the clips."""
    chosen, width, height, left, top, shade, tint = (u.view(-1, 1, 1, 1, 1) for u in uniform_BD.unbind(1))
    place = torch.linspace(0, 1, frames_BTCHW.shape[-1], device=frames_BTCHW.device)
    width, height = 0.1 + 0.25 * width, 0.1 + 0.25 * height
    across, down = place.view(1, 1, 1, 1, -1) - left * (1 - width), place.view(1, 1, 1, -1, 1) - top * (1 - height)
    hidden = (chosen < _COVERED) & (across > 0) & (across < width) & (down > 0) & (down < height)
    colour = torch.cat([shade, (shade + tint) / 2, tint][: frames_BTCHW.shape[2]], 2)
    return torch.where(hidden, colour, frames_BTCHW)
