"""Recordings of one's own as tests make them."""

from fractions import Fraction

import av
import numpy as np
import pytest

from aupipe.datasets import build_manifest, get_dataset
from aupipe.facs import AUSet

AUS = AUSet((1, 4, 12))


def write_video(path, count=10, times=None, rate=25):
    """`count` small frames, at `rate` or at `times` in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.codec_context.max_b_frames = 2
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for n in range(count if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 + 20 * (n % 10), np.uint8), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[n], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def add_images(folder, numbers, digits=4):
    for n in numbers:
        write(folder / f"{n:0{digits}d}.jpg", b"")


def read(raw, *, aus=AUS, strict=False, **options):
    return build_manifest(get_dataset("generic", aus, options), raw, strict=strict)


def column(table, name, by="frame"):
    return dict(zip(table[by].to_pylist(), table[name].to_pylist(), strict=True))


def values(table, name):
    return table[name].to_pylist()


@pytest.fixture(name="clip", scope="module")
def make_clip(tmp_path_factory):
    """Ten frames at 25 frames per second."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4").read_bytes()


@pytest.fixture(name="raw")
def make_raw(tmp_path, clip):
    """One video of ten frames, `a`, of subject P1; its labels are for the test to write."""
    write(tmp_path / "videos/a.mp4", clip)
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id\na,videos/a.mp4,video,P1\n")
    return tmp_path


@pytest.fixture(name="folder")
def make_folder(tmp_path):
    """One folder of six images, 5 to 10, of subject P1, taken ten times a second."""
    add_images(tmp_path / "pictures/a", range(5, 11))
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id,fps\na,pictures/a,frames,P1,10\n")
    return tmp_path
