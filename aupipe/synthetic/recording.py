"""A recording: what is rendered and kept as one; what a layout has to say about it, and how its files are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.schema import DataError, write_text
from aupipe.synthetic.render import Actor

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording: number of the subject (from 0) and of the session (from 1), and the two names of its key.

    `role` is what it owes to others of the corpus: a change of it makes the recording anew.
    """

    subject: int
    session: int
    owner: str
    name: str
    role: str = ""


@dataclass(slots=True)
class Written:
    """A recording on disk. `owned`: its files and folders · `tables`: label files, the first with a header if `header` ·
    `folder` of frames or `video` · `numbers`: the frame numbers that have a label row · `counts`: of the truth. Files of
    landmarks are owned and nothing more.
    """

    raw: Path
    owned: list[Path]
    tables: list[Path]
    numbers: range
    counts: dict[str, Any]
    header: bool = False
    folder: Path | None = None
    video: Path | None = None


class Writer(Protocol):
    """A layout's way of writing. fps and margins are its own, used where a spec leaves them open."""

    fps: float
    margins: str
    has_uncoded: bool

    def recordings(self, spec: SyntheticConfig) -> list[Recording]: ...

    def paths(self, spec: SyntheticConfig, recording: Recording) -> list[str]:
        """Its files and folders, relative to the raw root, before any damage."""

    def write(self, raw: Path, making: Path, actor: Actor, spec: SyntheticConfig, recording: Recording) -> Written:
        """Render and write it: media first, by way of the empty folder `making`, then the labels."""

    def describe_tree(self, spec: SyntheticConfig) -> list[str]:
        """Names of its folders that differ from the usual ones, as some copies of the corpus have them."""


def write_frames(folder: Path, frames: Iterable[tuple[str, Image]], quality: int) -> None:
    """Write RGB images (H, W, 3) as JPEGs of the given names into `folder`, which is made."""
    folder.mkdir(parents=True)
    for name, image in frames:
        done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise DataError(f"OpenCV could not encode {name} of {folder.name} as JPEG")
        (folder / name).write_bytes(jpeg.tobytes())


def write_video(path: Path, frames: Iterable[Image], size: tuple[int, int], fps: float, quality: int) -> None:
    """Write RGB frames of `size` (height, width) as Motion JPEG in AVI by OpenCV's own writer: always the same bytes."""
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    video = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, codec, fps, size[::-1])
    if not video.isOpened():
        raise DataError(f"OpenCV could not open {path.name} as Motion JPEG; its headless wheel from PyPI can")
    video.set(cv2.VIDEOWRITER_PROP_QUALITY, quality)
    for image in frames:
        video.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    video.release()


def write_rows(path: Path, rows: Iterable[Iterable[object]], header: str | None = None) -> None:
    """Write a table of comma-separated cells."""
    lines = [",".join(map(str, row)) for row in rows]
    write_text("".join(f"{line}\n" for line in ([header] if header is not None else []) + lines), path)


def count_labels(
    aus: Iterable[int], occurrence_NM: NDArray[np.int64], known_NM: NDArray[np.bool_], images: int
) -> dict[str, Any]:
    """Label rows, images, and per AU number the coded and the positive rows."""
    coded, positive = known_NM.sum(0), (occurrence_NM.astype(bool) & known_NM).sum(0)
    numbers = [str(au) for au in aus]
    return {
        "frames": len(occurrence_NM),
        "images": images,
        "coded": dict(zip(numbers, coded.tolist(), strict=True)),
        "positive": dict(zip(numbers, positive.tolist(), strict=True)),
    }


Damage = Callable[[Written, np.random.Generator], tuple[Path, str]]
