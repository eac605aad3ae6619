"""Videos in: their frames in order and with their times, uint8 RGB and upright."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aupipe import archives
from aupipe.schema import DataError

_log = logging.getLogger(__name__)

# Containers that are videos. FFmpeg would also open play lists, which read other files, and text files, which it draws.
_FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "rm,webm,wtv"
)
_IDENTITY = (1, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame: its number from 0 in the order of display, its time stamp in seconds (NaN where the file has none), the
    image (H, W, 3) uint8 RGB, and whether the decoder had to make up a part of it.
    """

    index: int
    time_s: float
    image: NDArray[np.uint8]
    damaged: bool = False


class Video:
    """A video file; every iteration decodes it once from the start, one frame in memory at a time.

    `frame_count` and `rate` (frames per second) are the container's claims, None where it makes none. `truncated` says,
    once an iteration has come to its end, whether frames were missing there; that is also logged as a warning.
    Raises DataError, when made or iterated, for what is not a video or has no frame that can be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.truncated: bool | None = None
        with _opened(self.path) as (_, stream):
            self.frame_count: int | None = stream.frames or None
            self.rate: float | None = float(stream.average_rate) if stream.average_rate else None

    def __iter__(self) -> Iterator[VideoFrame]:
        from av.video.reformatter import VideoReformatter

        with _opened(self.path) as (container, stream):
            damage: list[str] = []
            count, last, converter = 0, float("nan"), VideoReformatter()
            for frame in _decode(container, stream, damage):
                last = float("nan") if frame.pts is None else float(frame.pts * stream.time_base)
                image = _turn_upright(_to_rgb(frame, converter), _display_matrix(frame))
                yield VideoFrame(count, last, image, bool(frame.is_corrupt))
                count += 1
            if count == 0:
                raise DataError(f"{self.path} holds no frame that can be decoded; is it a complete video?")
            self.truncated = bool(damage) or self._ends_early(container, count, last)
        if self.truncated:
            claim = f" of {self.frame_count}" if self.frame_count else ""
            _log.warning("%s ends early: %d%s frames, the last at %.2f s", self.path, count, claim, last)

    def _ends_early(self, container: Any, count: int, last: float) -> bool:
        """Whether clearly less came out than the container claims, whose count is often off by one or two frames."""
        if self.frame_count:
            return count < self.frame_count - max(2, 0.005 * self.frame_count)
        if not container.duration:
            return False
        # In microseconds; with sound, that of the longer of the two.
        duration = container.duration / 1e6
        played = last - (container.start_time or 0) / 1e6
        return bool(duration - played > max(1, 0.05 * duration))


def read_frames(path: str | Path) -> Iterator[VideoFrame]:
    """The frames of a video in order. Raises DataError for what is not a video; a truncated one gives what it has."""
    return iter(Video(path))


def count_frames(path: str | Path) -> int:
    """How many frames a video file holds, counted without decoding them; of a truncated one those there.

    Raises DataError for what is not a video.
    """
    return len(frame_times(path))


def frame_times(path: str | Path) -> NDArray[np.float64]:
    """When each frame of a video is shown, (N,) seconds, ascending, from its packets and without decoding them.

    Where packets bear no times, frames follow each other at the container's rate; NaN where it states none either. Raises
    DataError for what is not a video.
    """
    import av

    stamps: list[float] = []
    with _opened(Path(path)) as (container, stream):
        unit, rate = float(stream.time_base), float(stream.average_rate or 0)
        with contextlib.suppress(av.FFmpegError):
            for packet in container.demux(stream):
                if packet.size > 0 and not packet.is_discard:
                    stamps.append(float("nan") if packet.pts is None else packet.pts * unit)
    times = np.sort(np.array(stamps))
    return np.arange(len(times)) / (rate or float("nan")) if np.isnan(times).any() else times


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    import av

    if not archives.exists(path):
        raise DataError(f"there is no video {path}")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(archives.on_disk(path))
        if not file.is_file():
            raise DataError(f"{path} is not a video file")
        try:
            # "file:" keeps a name with a colon in it from being taken for a protocol.
            options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
            container = stack.enter_context(av.open(f"file:{file}", container_options=options, metadata_errors="replace"))
        except (av.FFmpegError, ValueError, OSError):
            raise DataError(f"{path} is not a video, or one whose end or beginning is missing") from None
        # The cover of a sound file counts as a video stream for FFmpeg.
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise DataError(f"{path} holds no video, only sound or other data")
        if streams[0].codec_context is None:
            codec = _name_codec(file)
            raise DataError(f"{path} needs {codec}, which is not built in; convert it with `ffmpeg -i {path.name} new.mp4`")
        streams[0].codec_context.thread_count = 1  # videos are spread over cores, not one video's frames
        yield container, streams[0]


def _name_codec(file: Path) -> str:
    """The four letters of an AVI's codec, which its header holds; FFmpeg does not hand on those that it does not know."""
    with file.open("rb") as opened:
        match = re.search(rb"strh.{4}vids([ -~]{4})", opened.read(1 << 16), re.DOTALL)
    return f"the codec {match[1].decode()}" if match else "a codec"


def _decode(container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
    """Frames up to the end or the first damage, which is written into `damage`; frame numbers are exact up to there."""
    import av

    try:
        for packet in container.demux(stream):
            yield from packet.decode()
        return
    except av.FFmpegError as error:
        damage.append(str(error))
    # Frames that were decoded, and wait for one that is shown before them.
    with contextlib.suppress(av.FFmpegError, EOFError):
        yield from stream.decode(None)


def _to_rgb(frame: Any, converter: Any) -> NDArray[np.uint8]:
    """A decoded frame as (H, W, 3) uint8 RGB.

    One converter for the whole video and one thread: PyAV's `to_ndarray` sets both up anew for every frame, a thread per
    core, and copies the result.
    """
    rgb = converter.reformat(frame, format="rgb24", threads=1)
    rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)
    return np.ascontiguousarray(rows[:, : 3 * rgb.width]).reshape(rgb.height, rgb.width, 3)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Signs (a, b, c, d) of the display matrix, x' = a·x + c·y and y' = b·x + d·y; quarter turns and mirrors only."""
    data = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return _IDENTITY
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(int)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (int(np.sign(a)), 0, 0, int(np.sign(d)))
    return (0, int(np.sign(b)), int(np.sign(c)), 0)


def _turn_upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The image as it is meant to be shown. A camera held upright stores its pictures lying, with a matrix beside them."""
    if matrix == _IDENTITY:
        return image
    a, b, c, d = matrix
    if a == d == 0:
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
