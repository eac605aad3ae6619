"""What is around a session's face, and what films it: light, background, lens, sensor, and what gets in the way.

Colours are linear RGB until the sensor's picture is developed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.background import dress, paint_background
from aupipe.synthetic.coordinates import Array, floats, smoothstep
from aupipe.synthetic.identity import Identity
from aupipe.synthetic.light import Light, colour_of, draw_light
from aupipe.synthetic.occluders import Occluder, draw_occluder, place_occluder, smear_out

__all__ = ["DISTANCE", "HALF_HEIGHT", "LANDSCAPE", "PORTRAIT", "Camera", "Light", "Occluder", "draw_occluder", "frame_size",
           "look_through", "set_up_camera", "studio"]  # fmt: skip

DISTANCE = 11.5  # from the lens to the head, decimetres
HALF_HEIGHT = 1.5  # of what the frame shows at that distance
PORTRAIT, LANDSCAPE = 3 / 4, 4 / 3  # width by height
_OCCLUDED = 0.3  # share of the sessions in which something passes before the face
_LUMA = floats([0.2126, 0.7152, 0.0722])  # weights of the primaries in luminance, ITU-R BT.709
_GRAIN_STEP = 256


@dataclass(frozen=True, slots=True)
class Camera:
    """One session's set-up: frames of `size` (height, width), seen in this light before this background.

    blur: of the lens, the sd in pixels · noise: of the sensor relative to white, where the picture is white · exposure: a
    gain · colour: (3, 3), from the scene's RGB to the sensor's (white balance, saturation) · vignette: the share (height,
    width, 3) of light that reaches the sensor, or None · tone: the curve (256,) uint8 over the square root of the light, or
    None · sharpness: how strongly the camera overdraws edges · shutter: seconds that a frame is exposed · flicker: how far
    the session's variation of exposure shows · glasses: whether those who wear glasses have them on.
    """

    size: tuple[int, int]
    light: Light
    background: Array
    blur: float
    noise: float
    exposure: float
    jpeg_quality: int
    occluder: Occluder | None = None
    colour: Array | None = None
    vignette: Array | None = None
    tone: NDArray[np.uint8] | None = None
    sharpness: float = 0.0
    shutter: float = 0.0
    flicker: float = 1.0
    glasses: bool = False


def frame_size(height: int, aspect: float = PORTRAIT) -> tuple[int, int]:
    """(height, width) of a frame, its width even."""
    return height, 2 * round(height * aspect / 2)


def set_up_camera(
    rng: np.random.Generator, height: int, seconds: float, identity: Identity, aspect: float = PORTRAIT
) -> Camera:
    """Draw a session's camera: from a webcam in a dim room to a laboratory's.

    The same draws are made whatever the height, so that a size changes only the pixels; a wider frame shows more of the
    room beside the same sitter.
    """
    size = frame_size(height, aspect)
    light = draw_light(rng)
    dim, defocused = rng.random() < 0.1, rng.random() < 0.15
    blur = float(rng.uniform(0.9, 1.6) if defocused else rng.uniform(0.3, 0.9))
    noise = float(np.exp(rng.uniform(np.log(0.014), np.log(0.03)) if dim else rng.uniform(np.log(0.002), np.log(0.018))))
    exposure = float(np.exp(rng.normal(-0.5, 0.2) if dim else rng.normal(0, 0.17)))
    shutter = float(np.exp(rng.uniform(np.log(1 / 40 if dim else 1 / 250), np.log(1 / 22))))
    quality = int(rng.choice([rng.integers(80, 97), rng.integers(62, 80), rng.integers(45, 62)], p=[0.6, 0.3, 0.1]))
    colour, tone = _draw_colour(rng), _draw_tone(rng)
    sharpness = float(rng.uniform(0.2, 0.9)) if rng.random() < 0.4 else 0.0
    vignette, flicker = _draw_vignette(rng, size), float(rng.gamma(2, 0.5))
    occluder = (
        place_occluder(rng, seconds, height / (2 * HALF_HEIGHT), identity, light) if rng.random() < _OCCLUDED else None
    )
    background = paint_background(rng, size, floats(identity.cloth), PORTRAIT / aspect)
    return Camera(
        size, light, background, blur * height / 256, noise, exposure, quality, occluder,
        colour, vignette, tone, sharpness, shutter, flicker, glasses=True,
    )  # fmt: skip


def studio(height: int, cloth: Array) -> Camera:
    """The same even light and grey wall for everybody, without noise and glasses: for contact sheets."""
    size = frame_size(height)
    towards, fill = floats([-0.45, 0.45, 0.77]), floats([0.6, 0.1, 0.79])
    white = np.ones(3, np.float32)
    light = Light(towards, fill, 0.85 * white, 0.22 * white, 0.24 * white, 0.06)
    grey = np.linspace(0.30, 0.18, size[0], dtype=np.float32)[:, None, None] * floats([0.95, 1.0, 1.06])
    background = np.repeat(grey, size[1], 1)
    dress(background, (0.5, 1.17), (0.62, 0.30), cloth)
    return Camera(size, light, background, 0.35 * height / 256, 0.0, 1.05, 95)


def look_through(
    camera: Camera, linear: Array, rng: np.random.Generator, gain: float, smear: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.uint8]:
    """What the camera makes of the scene's light (height, width, 3): uint8 RGB.

    In this order: the lens's blur and that of movement, which goes `smear` (right, down) pixels during the exposure;
    exposure, white balance and vignetting; a square root, which spreads shades evenly; noise, the tone curve, sharpening.
    """
    if camera.blur > 0.3:
        linear = cv2.GaussianBlur(linear, (0, 0), camera.blur)
    linear = smear_out(linear, smear)
    colour = np.eye(3, dtype=np.float32) if camera.colour is None else camera.colour
    exposed = cv2.transform(linear, colour * np.float32(camera.exposure * gain))
    if camera.vignette is not None:
        cv2.multiply(exposed, camera.vignette, dst=exposed)
    developed = cv2.sqrt(cv2.max(exposed, (0.0,) * 4, dst=exposed), dst=exposed)
    picture = _read_out(camera, developed, rng)
    if camera.tone is not None:
        picture = cv2.LUT(picture, camera.tone)
    if camera.sharpness > 0:
        soft = cv2.GaussianBlur(picture, (0, 0), max(0.6, 1.1 * camera.size[0] / 256))
        picture = cv2.addWeighted(picture, 1 + camera.sharpness, soft, -camera.sharpness, 0)
    return np.asarray(picture, np.uint8)


def _read_out(camera: Camera, developed: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add the sensor's noise and round to 8 bits.

    Light arrives in quanta, whose noise has the same sd everywhere once the square root is taken; the electronics' own
    is as much in the dark as in the light, and the square root makes it show in the dark.
    """
    if camera.noise <= 0:
        return cv2.convertScaleAbs(developed, alpha=255)
    height, width = camera.size
    side = _GRAIN_STEP * (1 + -(-max(height, width) // _GRAIN_STEP))
    top, left = int(rng.integers(side - height)), int(rng.integers(side - width))
    amount = cv2.divide(0.16, cv2.add(developed, (0.12,) * 4))
    grain = cv2.multiply(cv2.add(amount, (0.85,) * 4, dst=amount), _grain(side)[top : top + height, left : left + width])
    return cv2.addWeighted(developed, 255, grain, 255 * camera.noise, 0, dtype=cv2.CV_8U)


@lru_cache(maxsize=2)
def _grain(side: int) -> Array:
    """Noise (side, side, 3) of unit sd, mostly grey, its colour coarser: a sensor sees one colour per pixel.

    Frames cut theirs out of this sheet, anywhere, which takes a tenth of the time of drawing it.
    """
    rng = np.random.default_rng([side])
    grey = cv2.GaussianBlur(rng.standard_normal((side, side, 1), dtype=np.float32), (0, 0), 0.45)[..., None]
    hue = cv2.GaussianBlur(rng.standard_normal((side, side, 3), dtype=np.float32), (0, 0), 1.0)
    sheet = grey / grey.std() + 0.35 * hue / hue.std()
    return (sheet / sheet.std()).astype(np.float32)


def _draw_colour(rng: np.random.Generator) -> Array:
    """White balance that is a little off, sometimes much, and saturation, sometimes none: (3, 3)."""
    balance = colour_of(float(rng.normal(0, 0.3 if rng.random() < 0.15 else 0.07))) * np.exp(rng.normal(0, 0.03, 3))
    saturation = float(np.exp(rng.normal(0, 0.2)))
    saturation = 0.0 if rng.random() < 0.04 else min(saturation, 1.5)
    mixed = saturation * np.eye(3) + (1 - saturation) * _LUMA
    return floats(mixed * (balance / (balance @ _LUMA))[None])


def _draw_tone(rng: np.random.Generator) -> NDArray[np.uint8]:
    """The curve (256,) from the square root of light to grey levels: gamma, contrast, and black that is not quite black."""
    gamma, contrast = float(np.exp(rng.normal(0, 0.13))), float(rng.uniform(-0.15, 0.5))
    black = float(rng.uniform(0.01, 0.07)) if rng.random() < 0.3 else 0.0
    x = np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(gamma)
    curve = black + (1 - black) * (x + contrast * (smoothstep(x, 0.0, 1.0) - x))
    return np.rint(255 * np.clip(curve, 0, 1)).astype(np.uint8)


def _draw_vignette(rng: np.random.Generator, size: tuple[int, int]) -> Array | None:
    """The corners get less light in half of the lenses."""
    there, loss = rng.random() < 0.5, rng.uniform(0.05, 0.5)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    half = np.hypot(height, width) / 2
    radius = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / np.float32(half**2)
    return cv2.merge([1 - np.float32(loss) * radius] * 3) if there else None
