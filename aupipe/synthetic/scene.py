"""A session as it is filmed: one person's motion before one camera, any frame of it on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.synthetic.camera import Camera, set_up_camera, studio
from aupipe.synthetic.coordinates import floats
from aupipe.synthetic.identity import draw_identity
from aupipe.synthetic.motion import CAMERA, Motion, frame_rng, perform, session_rng
from aupipe.synthetic.render import Actor, Pose, prepare_actor, render_frame
from aupipe.synthetic.rig import AUS, activate

SHEET_COLUMNS: tuple[tuple[int, ...], ...] = ((), (1, 2), (4,), (6, 12), (9,), (10,), (15, 17), (24,), (25, 26))


@dataclass(frozen=True, slots=True)
class Scene:
    """Session number `session` (from 1) of a subject (from 0); frames before `uncoded` have an image and no labels."""

    seed: int
    subject: int
    session: int
    uncoded: int
    motion: Motion
    camera: Camera

    @property
    def frames(self) -> int:
        return len(self.motion.seconds_N)

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The coded span: occurrence (N, M) 0/1 (intensity ≥ 1), intensity (N, M) 0–5, and the cells that are unknown."""
        intensity = self.motion.intensity_NM[self.uncoded :]
        levels = np.floor(np.clip(intensity, 0, 5)).astype(np.int64)
        return (levels >= 1).astype(np.int64), levels, self.motion.unknown_NM[self.uncoded :]


def set_scene(spec: SyntheticConfig, subject: int, session: int) -> Scene:
    """A session of the corpus: a function of the spec's seed, seconds, fps, size and uncoded, and of the two numbers."""
    frames = spec.uncoded + max(1, round(spec.seconds * spec.fps))
    motion = perform(spec.seed, subject, session, frames, spec.fps)
    cloth = floats(draw_identity(spec.seed, subject).cloth)
    camera = set_up_camera(session_rng(spec.seed, subject, session, CAMERA), spec.size, frames / spec.fps, cloth)
    return Scene(spec.seed, subject, session, spec.uncoded, motion, camera)


def film(actor: Actor, scene: Scene, frame: int) -> NDArray[np.uint8]:
    """Frame number `frame` (from 0) of a scene: (height, width, 3) uint8 RGB, the same whatever was filmed before."""
    motion, n = scene.motion, frame
    activation = activate(
        motion.intensity_NM[n],
        blink=float(motion.blink_N[n]),
        gaze=(float(motion.gaze_N2[n, 0]), float(motion.gaze_N2[n, 1])),
        speech=(float(motion.speech_N2[n, 0]), float(motion.speech_N2[n, 1])),
    )
    pose = Pose(tuple(motion.angles_N3[n]), tuple(motion.shift_N3[n]))
    return render_frame(
        actor,
        scene.camera,
        activation,
        motion.intensity_NM[n],
        pose,
        frame_rng(scene.seed, scene.subject, scene.session, n),
        second=float(motion.seconds_N[n]),
        flicker=float(motion.flicker_N[n]),
    )


def contact_sheet(
    seed: int, subjects: Sequence[int], columns: Sequence[tuple[int, ...]] = SHEET_COLUMNS, *, height: int = 188
) -> NDArray[np.uint8]:
    """People × AU combinations at full intensity, in even light, with captions: (H, W, 3) uint8 RGB."""
    rows = []
    for subject in subjects:
        actor, camera = prepare_actor(seed, subject), studio(height, floats(draw_identity(seed, subject).cloth))
        tiles = []
        for column in columns:
            intensity = floats([5 * (au in column) for au in AUS])
            noise = frame_rng(seed, subject, 0, 0)
            tiles.append(render_frame(actor, camera, activate(intensity), intensity, Pose(), noise))
        rows.append(np.hstack(tiles))
    captions = [_caption("AU " + " + ".join(map(str, c)) if c else "neutral", tiles[0].shape[1]) for c in columns]
    return np.vstack([np.hstack(captions), *rows])


def _caption(text: str, width: int) -> NDArray[np.uint8]:
    strip = np.full((20, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (5, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    return strip
