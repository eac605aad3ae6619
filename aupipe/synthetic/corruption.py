"""Single frames that a camera or what stands before it has spoilt: blurred, noisy, covered in part, or badly exposed."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SHARE = 0.35  # of the frames of a corrupted session


def corrupt(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A frame (H, W, 3), spoilt or as it is. `rng` is the frame's own."""
    kind, strength = int(rng.integers(4)), float(rng.uniform(0.3, 1.0))
    if rng.random() >= SHARE:
        return image
    height, width = image.shape[:2]
    if kind == 0:
        return cv2.GaussianBlur(image, (0, 0), max(0.5, 0.016 * strength * height))
    if kind == 1:
        noise = rng.normal(0, 60 * strength, image.shape[:2])
        return np.clip(image + noise[..., None], 0, 255).astype(np.uint8)
    if kind == 2:
        spoilt = image.copy()
        tall, wide = int(0.4 * strength * height), int(0.4 * strength * width)
        top, left = int(rng.integers(height - tall)), int(rng.integers(width - wide))
        spoilt[top : top + tall, left : left + wide] = rng.integers(0, 256, 3, dtype=np.uint8)
        return spoilt
    gain = 1 + 1.5 * strength if rng.random() < 0.5 else 1 - 0.8 * strength
    return cv2.convertScaleAbs(image, alpha=gain)
