"""What is around a session's face: light, background, lens, sensor and what gets in the way. Colours are linear RGB."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, floats

DISTANCE = 11.5  # from the lens to the head, decimetres
HALF_HEIGHT = 1.5  # of what the frame shows at that distance


@dataclass(frozen=True, slots=True)
class Light:
    """A key light, a fill from the other side, and ambient light from above. Directions are unit vectors to the light."""

    towards: Array
    fill_towards: Array
    key: Array
    fill: Array
    ambient: Array
    gloss: float


@dataclass(frozen=True, slots=True)
class Occluder:
    """A hand-like shape that passes before the face: time of its middle and half its stay in seconds, place in 0–1."""

    middle: float
    half_stay: float
    place: tuple[float, float]
    axes: tuple[float, float]
    angle: float


@dataclass(frozen=True, slots=True)
class Camera:
    """One session's set-up: frames of `size` (height, width), blur in pixels, noise and exposure relative to white."""

    size: tuple[int, int]
    light: Light
    background: Array
    blur: float
    noise: float
    exposure: float
    jpeg_quality: int
    occluder: Occluder | None


PORTRAIT, LANDSCAPE = 3 / 4, 4 / 3  # width by height


def frame_size(height: int, aspect: float = PORTRAIT) -> tuple[int, int]:
    """(height, width) of a frame, its width even."""
    return height, 2 * round(height * aspect / 2)


def set_up_camera(rng: np.random.Generator, height: int, seconds: float, cloth: Array, aspect: float = PORTRAIT) -> Camera:
    """Draw a session's camera. The same draws are made whatever the height, so that a size changes only the pixels;
    a wider frame shows more of the wall beside the same sitter.
    """
    size = frame_size(height, aspect)
    light = _draw_light(rng)
    blur, noise = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.004, 0.028))
    exposure, quality = float(rng.uniform(0.8, 1.25)), int(rng.integers(72, 96))
    occluder = _draw_occluder(rng, seconds) if rng.random() < 0.2 else None
    background = _paint_background(rng, size, cloth, PORTRAIT / aspect)
    if occluder is not None and aspect != PORTRAIT:
        occluder = _narrow(occluder, PORTRAIT / aspect)
    return Camera(size, light, background, blur * height / 256, noise, exposure, quality, occluder)


def studio(height: int, cloth: Array) -> Camera:
    """The same even light and grey wall for everybody, without noise: for contact sheets."""
    size = frame_size(height)
    towards, fill = floats([-0.45, 0.45, 0.77]), floats([0.6, 0.1, 0.79])
    white = np.ones(3, np.float32)
    light = Light(towards, fill, 0.85 * white, 0.22 * white, 0.24 * white, 0.06)
    grey = np.linspace(0.30, 0.18, size[0], dtype=np.float32)[:, None, None] * floats([0.95, 1.0, 1.06])
    background = np.repeat(grey, size[1], 1)
    _dress(background, (0.5, 1.17), (0.62, 0.30), cloth)
    return Camera(size, light, background, 0.35 * height / 256, 0.0, 1.05, 95, None)


def look_through(camera: Camera, linear: Array, rng: np.random.Generator, gain: float) -> NDArray[np.uint8]:
    """Blur, expose, develop with a square-root tone curve, and add the sensor's noise: uint8 RGB."""
    if camera.blur > 0.3:
        linear = cv2.GaussianBlur(linear, (0, 0), camera.blur)
    exposed = cv2.multiply(linear, (camera.exposure * gain,) * 4)
    developed = cv2.sqrt(np.clip(exposed, 0, 1, out=exposed))
    if camera.noise > 0:
        noise = rng.standard_normal(linear.shape[:2], dtype=np.float32)
        noise *= np.float32(camera.noise)
        developed += noise[..., None]
    return cv2.convertScaleAbs(np.maximum(developed, 0, out=developed), alpha=255)


def draw_occluder(linear: Array, occluder: Occluder, second: float, colour: Array) -> None:
    """Paint the hand where it is at that time, if it is in the picture."""
    phase = (second - occluder.middle) / occluder.half_stay
    if abs(phase) >= 1:
        return
    height, width = linear.shape[:2]
    x, y = occluder.place[0] + 0.05 * phase, occluder.place[1] + 0.35 * phase**2
    axes = (int(width * occluder.axes[0]), int(height * occluder.axes[1]))
    centre = (int(width * x), int(height * y))
    for step in range(4):  # darker towards its outline, as if it were round
        inner = (round(axes[0] * (1 - 0.16 * step)), round(axes[1] * (1 - 0.16 * step)))
        shade = tuple(float(c) for c in colour * (0.62 + 0.13 * step))
        cv2.ellipse(linear, centre, inner, occluder.angle, 0, 360, shade, -1, cv2.LINE_AA)


def _draw_light(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(-1.1, 1.1), rng.uniform(0.1, 0.9)
    towards = np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
    fill_towards = np.array([-np.sin(azimuth), 0.1, 0.6])
    key = rng.uniform(0.7, 1.1) * (1 + rng.normal(0, 0.05, 3))
    fill = rng.uniform(0.08, 0.35) * (1 + rng.normal(0, 0.06, 3))
    ambient = rng.uniform(0.14, 0.35) * (1 + rng.normal(0, 0.04, 3))
    fill_towards /= np.linalg.norm(fill_towards)
    gloss = float(rng.uniform(0.02, 0.14))
    return Light(floats(towards), floats(fill_towards), floats(key), floats(fill), floats(ambient), gloss)


def _draw_occluder(rng: np.random.Generator, seconds: float) -> Occluder:
    place = (float(rng.uniform(0.25, 0.75)), float(rng.uniform(0.4, 0.75)))
    axes = (float(rng.uniform(0.10, 0.2)), float(rng.uniform(0.09, 0.18)))
    return Occluder(float(rng.uniform(0, seconds)), float(rng.uniform(0.25, 0.8)), place, axes, float(rng.uniform(0, 180)))


def _narrow(occluder: Occluder, share: float) -> Occluder:
    """The same hand before the same face, in a frame of which the portrait frame is a `share` of the width."""
    x, y = occluder.place
    return replace(occluder, place=(0.5 + (x - 0.5) * share, y), axes=(occluder.axes[0] * share, occluder.axes[1]))


def _paint_background(rng: np.random.Generator, size: tuple[int, int], cloth: Array, share: float) -> Array:
    """A wall out of focus, and the sitter's clothes, which are narrower by `share` in a wider frame."""
    height, width = size
    wall = np.float32(rng.uniform(0.03, 0.6)) + rng.normal(0, 0.04, 3).astype(np.float32)
    blotches = rng.standard_normal((6, 5), dtype=np.float32) * np.float32(0.05)
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.float32(rng.normal(0, 0.12))
    shade = cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC) + slope
    background = np.clip(wall + shade[..., None], 0.01, 1)
    middle, axes = (0.5, float(rng.uniform(1.1, 1.18))), (float(rng.uniform(0.56, 0.7)), float(rng.uniform(0.24, 0.3)))
    _dress(background, middle, (axes[0] * share, axes[1]), cloth)
    return np.clip(background, 0.005, 1).astype(np.float32)


def _dress(background: Array, middle: tuple[float, float], axes: tuple[float, float], cloth: Array) -> None:
    height, width = background.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    reach = ((x / width - middle[0]) / axes[0]) ** 2 + ((y / height - middle[1]) / axes[1]) ** 2
    edge = np.clip((1 - reach) * height / 12, 0, 1)[..., None]
    shaded = cloth * (1 - 0.45 * np.clip(reach, 0, 1) ** 3)[..., None]
    background += edge * (shaded - background)
