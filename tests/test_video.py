"""video.py: every frame once, in order, at its time, the right way up; damaged files end in a sentence or a warning."""

import contextlib
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from aupipe.schema import DataError
from aupipe.video import Video, count_frames, read_frames

HEIGHT, WIDTH = 96, 128


def make_image(number):
    """The number as eight black or white blocks in the upper half; the lower half is coloured by side."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            image[: HEIGHT // 2, bit * 16 : bit * 16 + 16] = 255
    image[HEIGHT // 2 :, : WIDTH // 2] = (200, 40, 30)
    image[HEIGHT // 2 :, WIDTH // 2 :] = (30, 40, 200)
    return image


def read_number(image):
    return sum(1 << bit for bit in range(8) if image[HEIGHT // 4, bit * 16 + 8].mean() > 128)


def write_video(path, count=60, codec="libx264", times=None, rotation=None, matrix=None, format_options=None):
    """Frames 0 … count − 1 at 25 frames per second, or at `times` in milliseconds."""
    with av.open(str(path), "w", options=format_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = 2
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(make_image(number), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path, share):
    """The file without its last part, under a new name."""
    short = path.with_name(f"cut-{path.name}")
    data = path.read_bytes()
    short.write_bytes(data[: int(len(data) * share)])
    return short


FILES = {"a.mp4": "libx264", "b.avi": "mpeg4", "c.avi": "mjpeg", "d.mkv": "libx264", "e.ts": "libx264", "f.webm": "libvpx"}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_comes_once_and_in_order(tmp_path, name, caplog):
    video = Video(write_video(tmp_path / name, codec=FILES[name]))
    assert video.rate == 25
    assert video.frame_count in (60, None)
    assert video.truncated is None
    frames = list(video)
    assert [read_number(frame.image) for frame in frames] == list(range(60))
    assert [frame.index for frame in frames] == list(range(60))
    np.testing.assert_allclose(np.diff([frame.time_s for frame in frames]), 0.04, atol=0.0011)
    assert not any(frame.damaged for frame in frames)
    assert video.truncated is False
    assert not caplog.records
    assert [frame.index for frame in video] == list(range(60)), "a second reading starts anew"


def test_images_are_rgb(tmp_path):
    frame = next(read_frames(write_video(tmp_path / "a.mp4", 3)))
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
    np.testing.assert_allclose(frame.image[HEIGHT * 3 // 4, WIDTH // 4], (200, 40, 30), atol=12)
    np.testing.assert_allclose(frame.image[HEIGHT * 3 // 4, WIDTH * 3 // 4], (30, 40, 200), atol=12)


@pytest.mark.parametrize(("width", "height"), [(128, 96), (98, 50), (66, 34)])
def test_colours_are_those_of_ffmpegs_own_conversion(tmp_path, width, height):
    """Also where rows are padded in memory, and although one converter serves all frames."""
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(5):
            small = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
            image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    ours = [frame.image for frame in Video(tmp_path / "a.mp4")]  # all kept: no frame's pixels may lie in another's
    with av.open(str(tmp_path / "a.mp4")) as container:
        for image, frame in zip(ours, container.decode(video=0), strict=True):
            np.testing.assert_array_equal(image, frame.to_ndarray(format="rgb24"))


def test_times_come_from_the_file_and_not_from_the_rate(tmp_path):
    gaps = np.random.default_rng(0).choice([20, 33, 40, 400], 59)
    times = [0, *np.cumsum(gaps).tolist()]
    frames = list(read_frames(write_video(tmp_path / "a.mp4", times=times)))
    assert [read_number(frame.image) for frame in frames] == list(range(60))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.array(times) / 1000, atol=1e-6)


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotation_tag_is_applied(tmp_path, degrees, turns):
    video = Video(write_video(tmp_path / "a.mp4", 3, rotation=degrees))
    expected = np.rot90(make_image(2), turns).astype(float)
    image = list(video)[2].image
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert np.abs(image - expected).mean() < 8


@pytest.mark.parametrize(
    ("matrix", "change"),
    [
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_mirrored_video_is_put_right(tmp_path, matrix, change):
    a, b, c, d = (65536 * v for v in matrix)
    path = write_video(tmp_path / "a.mp4", 3, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    image = list(read_frames(path))[1].image
    assert np.abs(image - change(make_image(1)).astype(float)).mean() < 8


@pytest.mark.parametrize("name", ["fast.mp4", "b.avi", "c.avi", "d.mkv", "f.webm"])
def test_cut_off_video_gives_what_it_has(tmp_path, name, caplog):
    fast = {"format_options": {"movflags": "faststart"}} if name == "fast.mp4" else {}
    path = write_video(tmp_path / name, 200, codec=FILES.get(name, "libx264"), **fast)
    video = Video(cut(path, 0.5))
    frames = list(video)
    assert video.truncated is True
    assert 10 < len(frames) < 190
    whole = [frame for frame in frames if not frame.damaged]
    assert len(whole) >= len(frames) - 2
    assert [read_number(frame.image) for frame in whole[:-2]] == [frame.index for frame in whole[:-2]]
    assert "ends early" in caplog.text
    assert f"cut-{name}" in caplog.text


def test_frames_that_wait_in_the_decoder_are_not_lost(tmp_path):
    """Frames are stored in another order than they are shown in, so at the break some are decoded and not yet shown."""
    path = cut(write_video(tmp_path / "a.mp4", 200, format_options={"movflags": "faststart"}), 0.7)
    whole_packets = 0
    with av.open(str(path)) as container, contextlib.suppress(av.FFmpegError):
        for packet in container.demux(video=0):
            packet.decode()
            whole_packets += 1
    assert 10 < whole_packets < 190
    assert len(list(read_frames(path))) == whole_packets


def test_cut_off_video_without_its_index_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cut-a\.mp4 is not a video"):
        Video(cut(write_video(tmp_path / "a.mp4"), 0.5))


def test_leaving_early_is_no_damage(tmp_path, caplog):
    video = Video(write_video(tmp_path / "a.mp4"))
    for frame in video:
        if frame.index == 5:
            break
    assert not video.truncated
    assert not caplog.records


def test_what_is_not_a_video(tmp_path):
    files = {
        "empty.mp4": b"",
        "text.mp4": b"hello\n" * 100,
        "text.txt": b"hello\n" * 100,
        "noise.mp4": np.random.default_rng(0).bytes(50_000),
        "picture.jpg": cv2.imencode(".jpg", make_image(5))[1].tobytes(),
        "picture.png": cv2.imencode(".png", make_image(5))[1].tobytes(),
    }
    write_video(tmp_path / "a.mp4", 5)
    files["list.ffconcat"] = b"ffconcat version 1.0\nfile a.mp4\n"
    files["list.m3u8"] = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.mp4").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    for name in (*files, "folder.mp4", "sound.wav", "absent.mp4"):
        for call in (Video, lambda path: next(read_frames(path))):
            with pytest.raises(DataError, match=name) as caught:
                call(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_video_with_sound_only(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="holds no video"):
        Video(tmp_path / "a.mp4")


def test_unknown_codec_is_named_with_the_way_out(tmp_path):
    path = write_video(tmp_path / "a.avi", 5, codec="mjpeg")
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"XYZ1"))
    with pytest.raises(DataError, match=r"a\.avi needs the codec XYZ1.*`ffmpeg -i a\.avi new\.mp4`"):
        Video(path)


@pytest.mark.parametrize("name", FILES)
def test_frames_are_counted_without_decoding_them(tmp_path, name):
    assert count_frames(write_video(tmp_path / name, codec=FILES[name])) == 60


def test_of_a_cut_off_video_the_frames_that_are_there_are_counted(tmp_path):
    path = cut(write_video(tmp_path / "a.avi", 200, codec="mpeg4"), 0.5)
    assert abs(count_frames(path) - len(list(read_frames(path)))) <= 2


def test_names_with_signs_in_them(tmp_path):
    path = write_video(tmp_path / "tmp.mp4", 2).rename(tmp_path / "concat:a|ü (1).mp4")
    assert len(list(read_frames(str(path)))) == 2
