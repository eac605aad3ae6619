"""A session as it is filmed: one person's motion before one camera, any frame of it on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.synthetic.camera import HALF_HEIGHT, PORTRAIT, Camera, set_up_camera, studio
from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.corruption import corrupt
from aupipe.synthetic.head import load_head
from aupipe.synthetic.identity import draw_identity
from aupipe.synthetic.margins import MARGINS
from aupipe.synthetic.mesh import SKIN
from aupipe.synthetic.motion import CAMERA, CORRUPTION, Motion, frame_rng, join_motions, perform, session_rng
from aupipe.synthetic.render import Actor, Pose, pose_head, prepare_actor, project, render_frame
from aupipe.synthetic.rig import AUS, activate

_FPS = 25.0
SHEET_COLUMNS: tuple[tuple[int, ...], ...] = ((), (1, 2), (4,), (6, 12, 25), (9,), (10,), (15, 17), (24,), (25, 26))


@dataclass(frozen=True, slots=True)
class Scene:
    """Session number `session` (from 1) of a subject (from 0); frames before `uncoded` have an image and no labels."""

    seed: int
    subject: int
    session: int
    uncoded: int
    motion: Motion
    camera: Camera
    occurs_at: int = 1
    corrupted: bool = False

    @property
    def frames(self) -> int:
        return len(self.motion.seconds_N)

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The coded span: occurrence (N, M) 0/1, intensity (N, M) 0–5 rounded down, and the cells that are unknown.

        An AU occurs from the intensity on that its corpus counts, 1 or 2.
        """
        intensity = self.motion.intensity_NM[self.uncoded :]
        levels = np.floor(np.clip(intensity, 0, 5)).astype(np.int64)
        return (levels >= self.occurs_at).astype(np.int64), levels, self.motion.unknown_NM[self.uncoded :]


def set_scene(spec: SyntheticConfig, subject: int, session: int, *, sessions: int = 1, aspect: float = PORTRAIT) -> Scene:
    """A session of the corpus: a function of the spec's seed, seconds, fps, size, uncoded, margins and corruption, and of
    the two numbers. Before one camera, `sessions` of them from that number on make one recording.
    """
    fps, margins = spec.fps or _FPS, MARGINS[spec.margins or "bp4d"]
    length = max(1, round(spec.seconds * fps))
    frames = [spec.uncoded + length, *[length] * (sessions - 1)]
    motions = [perform(spec.seed, subject, session + n, count, fps, margins) for n, count in enumerate(frames)]
    rng = session_rng(spec.seed, subject, session, CAMERA)
    camera = set_up_camera(rng, spec.size, sum(frames) / fps, draw_identity(spec.seed, subject), aspect)
    corrupted = session_rng(spec.seed, subject, session, CORRUPTION).random() < spec.corruption
    motion = motions[0] if sessions == 1 else join_motions(motions, fps)
    return Scene(spec.seed, subject, session, spec.uncoded, motion, camera, margins.occurs_at, bool(corrupted))


def act(scene: Scene, frame: int) -> tuple[Array, Pose]:
    """What the face does in frame number `frame`: activations (K,) of the rig, and where the head is."""
    motion, n = scene.motion, frame
    activation = activate(
        motion.intensity_NM[n],
        uncoded=motion.uncoded_ND[n],
        blink=float(motion.blink_N[n]),
        wink=float(motion.wink_N[n]),
        aside=motion.aside_NL[n],
        gaze=(float(motion.gaze_N2[n, 0]), float(motion.gaze_N2[n, 1])),
    )
    return activation, Pose(tuple(motion.angles_N3[n]), tuple(motion.shift_N3[n]))


def film(actor: Actor, scene: Scene, frame: int) -> NDArray[np.uint8]:
    """Frame number `frame` (from 0) of a scene: (height, width, 3) uint8 RGB, the same whatever was filmed before."""
    activation, pose = act(scene, frame)
    image = render_frame(
        actor,
        scene.camera,
        activation,
        scene.motion.intensity_NM[frame],
        pose,
        frame_rng(scene.seed, scene.subject, scene.session, frame),
        second=float(scene.motion.seconds_N[frame]),
        flicker=float(scene.motion.flicker_N[frame]),
        smear=smear(scene, frame),
    )
    if not scene.corrupted:
        return image
    return corrupt(image, np.random.default_rng([scene.seed, scene.subject, scene.session, frame, CORRUPTION]))


def smear(scene: Scene, frame: int) -> tuple[float, float]:
    """How far right and down, in pixels, the face moves while the frame is exposed, by the frames around it."""
    motion, camera = scene.motion, scene.camera
    first, last = max(0, frame - 1), min(scene.frames - 1, frame + 1)
    if first == last:
        return 0.0, 0.0
    moved = motion.shift_N3[last] - motion.shift_N3[first]
    yaw, pitch, _ = motion.angles_N3[last] - motion.angles_N3[first]  # the face is about a decimetre before the neck's axis
    share = camera.shutter / float(motion.seconds_N[last] - motion.seconds_N[first]) * camera.size[0] / (2 * HALF_HEIGHT)
    return float(moved[0] + yaw) * share, float(pitch - moved[1]) * share


def find_face_box(actor: Actor, scene: Scene, frame: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels, of the face from above the brows to the chin; exact."""
    position, _ = pose_head(actor, *act(scene, frame))
    points = project(position[_face_vertices()], scene.camera.size)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return float(left), float(top), float(right), float(bottom)


@lru_cache(maxsize=1)
def _face_vertices() -> NDArray[np.intp]:
    head = load_head()
    x, y, z = head.face.T
    inside = (np.abs(x) < 2.2) & (y > -3.4) & (y < 1.5) & (z > 0.3) & (head.parts == SKIN)
    return np.flatnonzero(inside[head.geometry_R])


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
