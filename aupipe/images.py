"""Images in: single files, on disk or in a zip, and the frames that a manifest's rows name. Always uint8 RGB, upright."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe import archives, schema
from aupipe.schema import DataError
from aupipe.video import Video, VideoFrame

_log = logging.getLogger(__name__)

_PNG_MODES = {0: "grey", 2: "rgb", 3: "palette", 4: "grey+alpha", 6: "rgba"}
_JPEG_MODES = {1: "grey", 3: "rgb", 4: "cmyk"}
_OPAQUE = ("grey", "rgb", "cmyk")
# Times smaller that a JPEG can be decoded, and the flag; blocks of so many pixels become their mean within the decoder.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: 0,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """What a row's source gave: image (H, W, 3) uint8 RGB, or None with the status that says why.

    `mode` says how it was stored; `time_s` is a video frame's time stamp, None for image files. A pixel stands for `reduced`
    × `reduced` pixels of the source.
    """

    image: NDArray[np.uint8] | None
    status: str = schema.OK
    mode: str | None = None
    time_s: float | None = None
    reduced: int = 1


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file, on disk or in a zip, as (H, W, 3) uint8 RGB, upright by its Exif tag.

    Grey becomes three equal channels, CMYK and palettes become RGB, 16 bits become 8 by full range, and what is transparent
    lies over black. Raises DataError for a file that is absent, empty, cut off or not an image.
    """
    return decode_image(archives.read_bytes(Path(path)), str(path))[0]


def decode_image(data: bytes, name: str, reduced: int = 1) -> tuple[NDArray[np.uint8], str]:
    """As `read_image`, of bytes, and how the image was stored: "rgb", "grey", "cmyk", "palette", "rgba", "grey16" …

    A JPEG whose sides are multiples of `reduced` (1, 2, 4 or 8) can be had that many times smaller, for less work.
    """
    if not data:
        raise DataError(f"the image {name} is empty")
    # A JPEG that is cut off decodes all the same, with grey where the rest should be.
    if data.startswith(b"\xff\xd8") and not _jpeg_has_end(data):
        raise DataError(f"the image {name} is cut off or damaged")
    image: Any = None
    with contextlib.suppress(cv2.error):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | _REDUCED[reduced])
    if image is None:
        raise DataError(f"{name} is not an image that can be decoded; it may be cut off or damaged")
    mode = _find_mode(data)
    if mode.removesuffix("16") not in _OPAQUE:
        image = _lay_over_black(data, image)
    return image, mode


class FrameReader:
    """Reads the sources of a manifest's rows under a raw root, each video once as long as its rows come in order.

    One frame is in memory at a time. Nothing here raises for a bad file: the row's status says what became of it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._videos: dict[str, _VideoCursor] = {}

    def read(self, source: str | None, index: int | None, *, min_scale: float = 1.0, min_side: int = 0) -> Picture:
        """The picture of a row. Missing: no source, no such file, or beyond what a video holds; unreadable: the rest.

        A JPEG may come `reduced`, down to `min_scale` of its size, its longer side at least `min_side` pixels.
        """
        if source is None:
            return Picture(None, schema.MISSING)
        if index is not None and source in self._videos:
            return self._videos[source].read(index)
        try:
            path = archives.locate(self._root, source)
            if not archives.exists(path):
                return Picture(None, schema.MISSING)
            if index is not None:
                self._videos[source] = _VideoCursor(path)
                return self._videos[source].read(index)
            data = archives.read_bytes(path)
            reduced = _choose_reduction(data, min_scale, min_side)
            image, mode = decode_image(data, str(path), reduced)
        except DataError as error:
            _log.warning("%s", error)
            return Picture(None, schema.UNREADABLE)
        return Picture(image, mode=mode, reduced=reduced)


@dataclass(slots=True)
class _VideoCursor:
    """A video and how far it has been read."""

    path: Path
    frames: Iterator[VideoFrame] | None = None
    last: VideoFrame | None = None
    broken: bool = field(default=False)

    def read(self, index: int) -> Picture:
        if self.broken:
            return Picture(None, schema.UNREADABLE)
        try:
            frame = self._seek(index)
        except DataError as error:
            self.broken = True  # said once, not for each of its frames
            _log.warning("%s", error)
            return Picture(None, schema.UNREADABLE)
        if frame is None:
            return Picture(None, schema.MISSING)
        time_s = None if np.isnan(frame.time_s) else frame.time_s
        if frame.damaged:
            return Picture(None, schema.UNREADABLE, "video", time_s)
        return Picture(frame.image, mode="video", time_s=time_s)

    def _seek(self, index: int) -> VideoFrame | None:
        """Frame number `index`, or None beyond the end; going back means decoding from the start."""
        if self.frames is None or (self.last is not None and self.last.index > index):
            self.frames, self.last = iter(Video(self.path)), None
        while self.last is None or self.last.index < index:
            frame = next(self.frames, None)
            if frame is None:
                return None
            self.last = frame
        return self.last


def _choose_reduction(data: bytes, min_scale: float, min_side: int) -> int:
    """How many times smaller an image is decoded: by a divisor of both sides, so that every block of pixels is whole."""
    if min_scale > 0.5 or not data.startswith(b"\xff\xd8"):
        return 1
    sides = _jpeg_frame(data)[:2]
    for times in _REDUCED:
        whole = min(sides) >= times and not any(side % times for side in sides)
        if whole and times * min_scale <= 1 and max(sides) >= times * min_side:
            return times
    return 1


def _lay_over_black(data: bytes, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The decoded image with what is transparent in it darkened; as it is if nothing can be."""
    whole: Any = None
    kinds: Any = None
    blocks: Any = None
    with contextlib.suppress(cv2.error):
        whole, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    if whole is None or whole.ndim != 3 or whole.shape[2] != 4:
        return image
    full = np.float32(np.iinfo(whole.dtype).max if whole.dtype.kind == "u" else 1)
    values = whole.astype(np.float32) / full
    flat = np.rint(values[..., :3] * values[..., 3:] * 255).clip(0, 255).astype(np.uint8)
    # Alpha is only given with the pixels as stored; through a PNG that keeps the Exif block they come out upright.
    _, png = cv2.imencodeWithMetadata(".png", flat, kinds, blocks)
    upright: Any = cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)
    return upright


def _find_mode(data: bytes) -> str:
    """How an image is stored, from its header; of other formats than JPEG and PNG, from its pixels."""
    if data.startswith(b"\xff\xd8"):
        return _JPEG_MODES.get(_jpeg_frame(data)[2], "rgb")
    if data.startswith(b"\x89PNG"):
        mode, depth = _PNG_MODES.get(data[25], "rgb"), data[24]
        clear = "+alpha" if mode in _OPAQUE and b"tRNS" in data[:4096] else ""  # one colour that stands for nothing
        return mode + clear + ("16" if depth == 16 else "")
    stored: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    channels = 1 if stored is None or stored.ndim == 2 else stored.shape[2]
    deep = stored is not None and stored.dtype != np.uint8
    return {1: "grey", 3: "rgb", 4: "rgba"}.get(channels, "rgb") + ("16" if deep else "")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte after its length, length) of each segment up to the start of the picture's own data."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, at + 4, length
        at += 2 + length
        if marker == 0xDA:
            return


def _jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """Height and width as stored, and the number of components; zeros where no frame header says."""
    for marker, at, _ in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 5 < len(data):  # a frame header
            height, width = (int.from_bytes(data[n : n + 2], "big") for n in (at + 1, at + 3))
            return height, width, data[at + 5]
    return 0, 0, 0


def _jpeg_has_end(data: bytes) -> bool:
    """Whether an end marker follows the start of the picture's own data; a preview in the Exif block has one of its own."""
    for marker, at, length in _jpeg_segments(data):
        if marker == 0xDA:  # start of scan; from here on, FF D9 is the end and nothing else
            return data.rfind(b"\xff\xd9") >= at - 2 + length  # from behind: it is the last thing in nearly every file
    return False
