"""Single frames that a camera or what stands before it has spoilt: blurred, smeared, noisy, covered in part, badly exposed
or badly compressed.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.occluders import smear_out

SHARE = 0.35  # of the frames of a corrupted session
_KINDS = 6


def corrupt(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A frame (H, W, 3), spoilt or as it is. `rng` is the frame's own."""
    kind, strength = int(rng.integers(_KINDS)), float(rng.uniform(0.3, 1.0))
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
    if kind == 3:
        angle, length = rng.uniform(0, np.pi), max(2.0, 0.07 * strength * height)
        return np.asarray(smear_out(image, (float(length * np.cos(angle)), float(length * np.sin(angle)))), np.uint8)
    if kind == 4:
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, round(30 - 22 * strength)])
        return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    gain = 1 + 1.5 * strength if rng.random() < 0.5 else 1 - 0.8 * strength
    return cv2.convertScaleAbs(image, alpha=gain)
