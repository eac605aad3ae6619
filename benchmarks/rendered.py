"""Pools of rendered faces for other benchmarks, found and aligned like those of any video; detectors trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aupipe.align import align
from aupipe.config import InputSpec, OptimiserConfig, PhaseConfig, SyntheticConfig, code, fingerprint
from aupipe.facs import AU_SETS
from aupipe.folds import label_stats
from aupipe.landmarks import load_landmarker
from aupipe.losses import weighted_bce
from aupipe.models import build_model
from aupipe.models._sequences import infer, is_temporal
from aupipe.optimisers import make_optimiser, set_rate
from aupipe.pixels import augment, normalise, read_channels, read_middle, shrink
from aupipe.processes import map_processes
from aupipe.schema import replacing
from aupipe.synthetic.corpus import settle
from aupipe.synthetic.motion import frame_rng
from aupipe.synthetic.render import Actor, prepare_actor, render_frame
from aupipe.synthetic.scene import Scene, act, film, set_scene, smear
from aupipe.synthetic.truth import landmarks

AUS = AU_SETS["synthetic"]
CACHE = Path("data/benchmarks")
SIZE = 112
INPUT = InputSpec(align="face112", crop=96, resize=64, normalise="grey", augment="strong")
MODEL = {"pooling": "7x7", "relative": "clip"}  # which leaves 4 × 4 places of 64 × 64 pixels, and knows the person at rest


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Subjects first … last − 1, `frames` of each, spread over `sessions`. What can be left out is named by its absence."""

    first: int
    last: int
    frames: int
    sessions: int = 2
    seed: int = 1
    rig: str = "face_units"
    wrinkles: bool = True
    distractors: bool = True
    exact: bool = False  # aligned by the exact landmarks and not by those that the face models find


@dataclass(frozen=True, slots=True)
class Pool:
    """faces (N, 112, 112, 3) uint8 RGB · intensity (N, M) 0–5 · subject (N,) · session (N,), unique over the pool."""

    faces: NDArray[np.uint8]
    intensity: NDArray[np.float32]
    subject: NDArray[np.int64]
    session: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.bool_]:
        return self.intensity >= 1


def render_pool(spec: PoolSpec) -> Pool:
    """Frames in which no face was found are left out and counted. Kept in data/benchmarks for the next run."""
    path = CACHE / f"{fingerprint(spec, code('synthetic', 'align', 'blazemesh', 'landmarks'))[:16]}.npz"
    if not path.exists():
        subjects = [(spec, subject) for subject in range(spec.first, spec.last)]
        parts = sorted(map_processes(_film_subject, subjects), key=lambda part: part[0])
        arrays = [np.concatenate([part[1][k] for part in parts]) for k in range(4)]
        wanted = spec.frames * len(subjects)
        print(f"rendered {len(arrays[0])} faces; none was found in {wanted - len(arrays[0])} frames", flush=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, *arrays)
    with np.load(path) as arrays:
        return Pool(*(arrays[f"arr_{k}"] for k in range(4)))


def _film_subject(task: tuple[PoolSpec, int]) -> tuple[int, list[NDArray]]:
    cv2.setNumThreads(1)
    spec, subject = task
    config = settle(SyntheticConfig(subjects=1, sessions=1, fps=10, uncoded=0, seed=spec.seed, rig=spec.rig), "bp4d")
    actor, landmarker = prepare_actor(spec.seed, subject, spec.rig), load_landmarker("blazemesh")
    faces, rows = [], []
    for session in range(1, spec.sessions + 1):
        scene = _simplify(set_scene(config, subject, session), spec)
        for frame in np.linspace(0, scene.frames - 1, spec.frames // spec.sessions).astype(int).tolist():
            image = film(actor, scene, frame) if spec.wrinkles else _film_smooth(actor, scene, frame)
            found = landmarker.find_face(image)
            if found is not None:
                points = landmarks(actor, scene, frame) if spec.exact else found.landmarks
                faces.append(align("face112", image, points).image)
                rows.append((scene.motion.intensity_NM[frame], subject, 100 * subject + session))
    intensity, subjects, sessions = zip(*rows, strict=True)
    return subject, [np.stack(faces), np.stack(intensity), np.array(subjects), np.array(sessions)]


def _simplify(scene: Scene, spec: PoolSpec) -> Scene:
    if spec.distractors:
        return scene
    motion = scene.motion
    still = {name: np.zeros_like(getattr(motion, name)) for name in ("uncoded_ND", "wink_N", "aside_NL", "flicker_N")}
    camera = replace(scene.camera, occluder=None, glasses=False)
    return replace(scene, motion=replace(motion, **still), camera=camera, corrupted=False)


def _film_smooth(actor: Actor, scene: Scene, frame: int) -> NDArray[np.uint8]:
    """A frame without the folds that movement draws."""
    activation, pose = act(scene, frame)
    rng = frame_rng(scene.seed, scene.subject, scene.session, frame)
    none = np.zeros_like(scene.motion.intensity_NM[frame])
    second, flicker = float(scene.motion.seconds_N[frame]), float(scene.motion.flicker_N[frame])
    return render_frame(
        actor, scene.camera, activation, none, pose, rng, second=second, flicker=flicker, smear=smear(scene, frame)
    )


def train(pool: Pool, spec: InputSpec, *, seed: int, epochs: int = 14, batch: int = 32, clip: int = 8) -> nn.Module:
    """The attention CNN; AdamW, one cycle, positives weighted, bfloat16. A step reads `batch` frames: `clip` of a session
    where the model compares them with each other, of any session where it does not.
    """
    torch.manual_seed(seed)
    stats = label_stats(pool.labels.astype(float))
    model = build_model("attention_cnn", MODEL, AUS, stats).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    phase = PhaseConfig(
        name="train",
        epochs=epochs,
        batch=batch,
        optimiser=OptimiserConfig(name="adamw", lr=0.002, weight_decay=0.02, schedule="one_cycle"),
    )
    optimiser = make_optimiser(phase.optimiser, model)
    faces, labels = torch.from_numpy(pool.faces), torch.from_numpy(pool.labels.astype(np.float32))
    weights = torch.from_numpy(np.clip(1 / stats.rate_M - 1, 0.5, 8)).float()
    steps, rng = len(faces) // batch, np.random.default_rng(seed)
    for epoch in range(epochs):
        model.train()
        for step, rows_BT in enumerate(_draw_clips(pool.session, steps, batch, clip if is_temporal(model) else 1, rng)):
            set_rate(optimiser, phase, epoch + step / steps)
            frames = _read(faces[rows_BT], spec, torch.from_numpy(rng.integers(2**62, size=len(rows_BT))), model)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(frames).logits_BTM.float()
            target = labels[rows_BT]
            loss = weighted_bce(logits, target, torch.ones_like(target, dtype=torch.bool), pos_weight=weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return model.eval()


def _draw_clips(
    session_N: NDArray[np.int64], steps: int, batch: int, clip: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows (B, T) of each step of an epoch: every frame once if T is 1, otherwise T frames of each of B sessions in turn."""
    if clip == 1:
        yield from rng.permutation(len(session_N))[: steps * batch].reshape(steps, batch, 1)
        return
    rows = [np.flatnonzero(session_N == session) for session in np.unique(session_N)]
    sessions = batch // clip
    turns = -(-steps * sessions // len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(turns)])[: steps * sessions]
    for chosen in order.reshape(steps, sessions):
        yield np.stack([rng.choice(rows[k], clip, replace=len(rows[k]) < clip) for k in chosen])


@torch.no_grad()
def predict(
    model: nn.Module, faces_NHWC: NDArray[np.uint8], session_N: NDArray[np.int64], spec: InputSpec
) -> NDArray[np.float64]:
    """Logits (N, M) of aligned faces (N, 112, 112, 3), each session read as one sequence."""
    logits = np.empty((len(faces_NHWC), len(AUS)))
    for session in np.unique(session_N):
        here = session_N == session
        parts = torch.from_numpy(faces_NHWC[here]).split(64)
        logits[here] = infer(model, [_read(part[None], spec, None, model) for part in parts]).logits_BTM[0].double().numpy()
    return logits


def _read(faces: torch.Tensor, spec: InputSpec, seeds: torch.Tensor | None, model: nn.Module) -> torch.Tensor:
    """Clips of faces (B, T, H, W, 3) as frames_BTCHW; augmented, mirrored at random or cut from the middle."""
    if seeds is None:
        return read_middle(faces.flatten(0, 1), model, spec).unflatten(0, faces.shape[:2])
    channels = read_channels(faces, spec.normalise)
    if spec.augment == "strong":
        frames = augment(channels, seeds, spec.crop)
    else:
        edge = (SIZE - spec.crop) // 2
        frames = channels[..., edge : edge + spec.crop, edge : edge + spec.crop]
        frames = torch.where((seeds % 2 == 0).view(-1, 1, 1, 1, 1), frames, frames.flip(-1))
    return normalise(shrink(frames, spec.resize), model, spec.normalise)
