"""The light that falls on a sitter: a key light, a fill, ambient light, and the edge of a shadow. Colours are linear RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aupipe.synthetic.coordinates import Array, floats, smoothstep

_FACING = 0.93  # mean irradiance of a face turned to the camera, which set-ups are brought near


@dataclass(frozen=True, slots=True)
class Shade:
    """The edge of a shadow that lies across the sitter: darker by `depth` where `across` · (x, y, z) > 0, soft over `width`.

    Points are relative to where the head is when the sitter sits still, in decimetres.
    """

    across: Array
    offset: float
    width: float
    depth: float


@dataclass(frozen=True, slots=True)
class Light:
    """A key light, a fill from another side, and ambient light from above. Directions are unit vectors to the light.

    `wrap`: how far the key light reaches round the face; 0 is a point, 1 a wall of light.
    """

    towards: Array
    fill_towards: Array
    key: Array
    fill: Array
    ambient: Array
    gloss: float
    wrap: float = 0.25
    shade: Shade | None = None

    def reach(self, position_R3: Array) -> Array | None:
        """The share (R,) of the key light that reaches points given relative to the sitter; None where nothing is shaded."""
        if self.shade is None:
            return None
        beyond = position_R3 @ self.shade.across - np.float32(self.shade.offset)
        return 1 - np.float32(self.shade.depth) * smoothstep(beyond, -self.shade.width, self.shade.width)

    def fall(self, normal: Array) -> Array:
        """Irradiance (…, 3) of small surfaces with these unit normals (…, 3), shaded by nothing."""
        facing, beside = (normal @ self.towards)[..., None], (normal @ self.fill_towards)[..., None]
        lit = np.maximum(0, (facing + self.wrap) / (1 + self.wrap)) * self.key
        lit = lit + (0.5 * beside + 0.5) * self.fill
        return np.asarray(lit + (0.65 + 0.35 * normal[..., 1:2]) * self.ambient, np.float32)


def draw_light(rng: np.random.Generator) -> Light:
    """Rooms, windows, screens, studios, rings of lamps and the sun: from any side, weakly from below and behind."""
    towards, fill_towards, contrast = _draw_directions(rng)
    warmth = float(rng.normal(0, 0.35 if rng.random() < 0.2 else 0.08))
    cool = warmth if rng.random() < 0.6 else -float(rng.uniform(0.3, 1.0)) * warmth  # the second light's colour
    key = rng.uniform(0.75, 1.05) * colour_of(warmth)
    fill = contrast * rng.uniform(0.08, 0.4) * colour_of(cool + float(rng.normal(0, 0.06)))
    ambient = contrast * rng.uniform(0.12, 0.36) * colour_of(0.5 * cool + float(rng.normal(0, 0.04)))
    light = Light(
        towards,
        fill_towards,
        floats(key),
        floats(fill),
        floats(ambient),
        float(rng.uniform(0.02, 0.14)),
        float(rng.uniform(0.04, 0.6)),
        _draw_shade(rng),
    )
    return _expose(light, float(np.exp(rng.normal(0, 0.12))))


def colour_of(warmth: float) -> Array:
    """The colour (3,) of a light: orange above 0, white at 0, blue below."""
    return np.exp(warmth * np.array([0.5, 0.0, -0.75]))


def aim(azimuth: float, height: float) -> Array:
    """A unit vector (3,): azimuth to the right of the camera, height above it, in radians."""
    return floats([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])


def _draw_directions(rng: np.random.Generator) -> tuple[Array, Array, float]:
    """To the key light, to the fill, and how strong everything but the key light is."""
    kind, side = rng.random(), 1.0 if rng.random() < 0.5 else -1.0
    contrast = 1.0
    if kind < 0.56:  # a lamp or a window before the sitter
        azimuth, height = side * rng.uniform(0, 1.1), rng.uniform(0.1, 0.9)
    elif kind < 0.70:  # from the side
        azimuth, height, contrast = side * rng.uniform(1.0, 1.6), rng.uniform(-0.1, 0.6), rng.uniform(0.7, 1.3)
    elif kind < 0.80:  # a ring of lamps round the lens, or a flash
        azimuth, height, contrast = side * rng.uniform(0, 0.15), rng.uniform(-0.1, 0.15), rng.uniform(0.4, 1.0)
    elif kind < 0.88:  # a screen, or the sun on a table
        azimuth, height, contrast = side * rng.uniform(0, 0.7), rng.uniform(-0.8, -0.15), rng.uniform(1.0, 1.8)
    elif kind < 0.94:  # straight from above
        azimuth, height, contrast = side * rng.uniform(0, 1.0), rng.uniform(0.9, 1.3), rng.uniform(1.0, 1.6)
    else:  # a window behind
        azimuth, height, contrast = side * rng.uniform(1.8, 2.6), rng.uniform(0.1, 0.7), rng.uniform(1.6, 2.6)
    fill_azimuth = -side * min(abs(azimuth), 1.2) + rng.normal(0, 0.2)
    return aim(azimuth, height), aim(fill_azimuth, rng.normal(0.15, 0.15)), contrast


def _draw_shade(rng: np.random.Generator) -> Shade | None:
    """In an eighth of the set-ups something stands before the key light and darkens a part of the face."""
    shaded, angle = rng.random() < 0.12, rng.uniform(-np.pi, np.pi)
    offset, width, depth = rng.uniform(-0.3, 0.7), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.8)
    across = floats([np.cos(angle), np.sin(angle), rng.uniform(-0.3, 0.3)])
    return Shade(across, float(offset), float(width), float(depth)) if shaded else None


def _expose(light: Light, brightness: float) -> Light:
    """The same light, nearly as strong as a camera wants it on a face that is turned to it."""
    facing = float(light.fall(np.stack([aim(azimuth, 0.0) for azimuth in (-0.5, 0.0, 0.5)])).mean())
    gain = np.float32(brightness * (_FACING / facing) ** 0.85)
    key, fill, ambient = gain * light.key, gain * light.fill, gain * light.ambient
    return Light(light.towards, light.fill_towards, key, fill, ambient, light.gloss, light.wrap, light.shade)
