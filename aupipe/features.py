"""Features of a part of a model that stays as it is: computed once per frame and kept, so that training reads no faces.

For every session there is one file, written beside itself and renamed: an interrupted pass goes on with the sessions that
are missing. A folder of them is named by all that they depend on, so trainings that start from the same weights share it.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from aupipe.clips import (
    ClipSpec,
    Epoch,
    clip_batches,
    clip_values,
    draw_crops,
    load_ahead,
    make_batch,
    plan_clips,
    read_clips,
    window_steps,
)
from aupipe.config import ALIGN_SIZE, Recipe, code, fingerprint
from aupipe.models import model_code
from aupipe.pixels import read_frames
from aupipe.schema import Batch, ConfigError, DataError, replacing
from aupipe.shards import INDEX, local_path

logger = logging.getLogger(__name__)

FEATURES = "features"
FRAMES = 64  # per forward pass; a row group of a shard
_STREAM = 1  # sets the draws of a variant apart from those of a crop


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features of sessions in `directory`, float32 (variants, rows, …), for `crops` variants of every training session.

    Variant 0 is the middle of the face, all that `val` needs; the others are cropped, mirrored and augmented as a clip of
    training is, one draw for a session, which depends on its path and the variant alone.
    """

    directory: Path
    crops: int

    def path(self, session: str) -> Path:
        return self.directory / f"{local_path(session).removesuffix('.parquet')}.safetensors"

    def holds(self, session: str, variants: int) -> bool:
        """Whether so many variants of a session are there, whole."""
        try:
            with safe_open(self.path(session), "np") as file:
                return file.get_slice(FEATURES).get_shape()[0] >= variants
        except (OSError, SafetensorError):
            return False

    def read(self, plan: pa.Table, variants_B: NDArray[np.int64], spec: ClipSpec, interval: int) -> NDArray[np.float32]:
        """features_BTMD of the clips of a plan, each of its own variant. Raises DataError for a file that is not there."""
        steps_BT = window_steps(plan["frames"].to_numpy(), spec) * interval
        places = zip(plan["path"].to_pylist(), plan["start"].to_pylist(), variants_B.tolist(), steps_BT, strict=True)
        return np.stack([self._read_window(*place) for place in places])

    def _read_window(self, session: str, start: int, variant: int, steps_T: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            with safe_open(self.path(session), "np") as file:
                rows = file.get_slice(FEATURES)[variant : variant + 1, start : start + int(steps_T.max()) + 1]
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the features in {self.path(session)} cannot be read ({error}); run the training again"
            ) from None
        return rows[0, steps_T]


def open_store(root: Path, model: nn.Module, recipe: Recipe, crops: int, shards: Path) -> FeatureStore:
    """The store of a model's frozen part under `root`; its folder's name is the key of all that the features depend on.

    Raises ConfigError for a model that trains all of itself.
    """
    if not getattr(model, "frozen", False):
        raise ConfigError(
            f"this {recipe.model['name']} trains all of itself, so no features of it can be kept; set the phases' crops to 0"
        )
    part: nn.Module = model.feature_part  # type: ignore[assignment]
    digest = hashlib.sha256(repr(part).encode())  # its layers and their options
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    files = [shards / INDEX, *code("features", "pixels"), *model_code(recipe.model["name"])]
    key = fingerprint([digest.hexdigest(), recipe.input, recipe.precision, crops], files)
    return FeatureStore(root / key[:16], crops)


def fill_store(
    store: FeatureStore,
    model: nn.Module,
    recipe: Recipe,
    shards: Path,
    plans: tuple[tuple[pa.Table, ClipSpec, int], ...],
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> None:
    """Compute what is missing of this rank's share of the sessions. `plans`: (plan, spec, variants) of each side."""
    started, frames, sessions = time.monotonic(), 0, 0
    for plan, spec, variants in plans:
        whole = replace(spec, frames=FRAMES, batch=1, intensity=False)
        rows = plan_clips(shards, set(plan["subject"].to_pylist()), whole)
        for session in pc.unique(rows["path"]).to_pylist()[rank::world]:
            if not store.holds(session, variants):
                own = rows.filter(pc.equal(rows["path"], session))
                features = _compute(own, model, recipe, shards, whole, variants, device)
                with replacing(store.path(session)) as temporary:
                    save_file({FEATURES: features}, temporary)
                frames, sessions = frames + features.shape[0] * features.shape[1], sessions + 1
    if sessions:
        seconds = time.monotonic() - started
        logger.info(
            "features of %d sessions, %d frames and crops, in %.0f s: %s", sessions, frames, seconds, store.directory
        )


@torch.no_grad()
def _compute(
    plan: pa.Table, model: nn.Module, recipe: Recipe, shards: Path, spec: ClipSpec, variants: int, device: str
) -> NDArray[np.float32]:
    """(variants, rows, …) of one session, whose frames the plan's clips hold once each."""
    session, starts, counts = plan["path"][0].as_py(), plan["start"].to_pylist(), plan["frames"].to_pylist()
    features: NDArray[np.float32] | None = None
    batches = clip_batches(plan, shards, spec, train=False)
    for batch, start, count in zip(batches, starts, counts, strict=True):
        for variant in range(variants):
            drawn = apply_variant(batch, [session], np.array([variant]), spec)
            inputs = read_frames(drawn, model, recipe.input, device, train=variant > 0)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe.precision == "bf16"):
                made = model.features(inputs[:, :count])[0]  # type: ignore[operator]
            if features is None:
                features = np.zeros((variants, starts[-1] + counts[-1], *made.shape[1:]), np.float32)
            features[variant, start : start + count] = made.float().cpu().numpy()
    assert features is not None, "a planned session has frames"
    if not np.isfinite(features).all():
        raise DataError(f"the features of {session} are not all numbers; the checkpoint that they start from is of no use")
    return features


def apply_variant(batch: Batch, sessions: list[str], variants_B: NDArray[np.int64], spec: ClipSpec) -> Batch:
    """The batch with the crop, the mirror flag and the seed of each clip's variant of its session."""
    slack = ALIGN_SIZE[spec.align] - spec.crop
    drawn = [
        draw_crops(np.array([zlib.crc32(local_path(session).encode())]), slack, Epoch(variant > 0, 0, variant))
        for session, variant in zip(sessions, variants_B.tolist(), strict=True)
    ]
    crop, mirror, seed = (np.concatenate(kind) for kind in zip(*drawn, strict=True))
    return replace(batch, crop_B2=crop, mirror_B=mirror, seed_B=seed)


def pick_variants(clip_B: NDArray[np.int64], epoch: Epoch, crops: int) -> NDArray[np.int64]:
    """Which variant each clip of the plan has in an epoch; outside training the first."""
    if not epoch.train:
        return np.zeros(len(clip_B), np.int64)
    seeds = ([epoch.seed, epoch.number, int(clip), _STREAM] for clip in clip_B)
    return np.array([np.random.default_rng(seed).integers(crops) for seed in seeds], np.int64)


def feature_batches(
    store: FeatureStore,
    plan: pa.Table,
    shards: Path,
    spec: ClipSpec,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches of `clips.clip_batches`, in the same order with the same labels, with features instead of frames."""
    this = Epoch(train, seed, epoch)
    read = partial(read_clips, shards=shards, spec=spec, epoch=this, faces=False)
    make = partial(_make, store=store, spec=spec, epoch=this)
    yield from load_ahead(plan, spec, this, read, make, rank=rank, world=world, start=start)


def _make(clips: pa.Table, *, store: FeatureStore, spec: ClipSpec, epoch: Epoch) -> Batch:
    variants = pick_variants(clips["clip"].to_numpy(), epoch, store.crops)
    features = store.read(clips, variants, spec, spec.interval if epoch.train else 1)
    pixels: NDArray[Any] = np.zeros((*features.shape[:2], 0, 0, 3), np.uint8)
    return replace(make_batch(clips, spec, epoch, pixels, clip_values(clips)), features_BTMD=features)
