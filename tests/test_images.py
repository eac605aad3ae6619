"""images.py: single images in every form they are stored in, and the frames that rows name, whatever state they are in."""

import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from test_video import HEIGHT, WIDTH, cut, make_image, read_number, write_video

from aupipe.images import FrameReader, decode_image, read_image
from aupipe.schema import DataError
from aupipe.video import Video


def encode(tmp_path, name, image, *flags):
    path = tmp_path / name
    path.write_bytes(cv2.imencode(path.suffix, image, list(flags))[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg", ".webp"])
def test_image_is_read_as_rgb(tmp_path, suffix):
    image = make_image(77)
    quality = (cv2.IMWRITE_JPEG_QUALITY, 100) if suffix == ".jpg" else ()
    read = read_image(encode(tmp_path, f"a{suffix}", image[..., ::-1], *quality))
    assert read.dtype == np.uint8
    assert read.shape == image.shape
    np.testing.assert_allclose(read[HEIGHT * 3 // 4, WIDTH // 4], (200, 40, 30), atol=4)


def test_other_depths_and_channels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    grey = image[..., 0]
    np.testing.assert_array_equal(read_image(encode(tmp_path, "grey.png", grey)), np.repeat(grey[..., None], 3, 2))
    deep = read_image(encode(tmp_path, "deep.png", image[..., ::-1].astype(np.uint16) * 257))
    np.testing.assert_array_equal(deep, image)
    opaque = np.dstack([image[..., ::-1], np.full((40, 50), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(encode(tmp_path, "alpha.png", opaque)), image)


def read_with_mode(path):
    return decode_image(path.read_bytes(), path.name)


def test_how_an_image_was_stored_is_said(tmp_path):
    image = make_image(9)
    expected = {"grey": ("L", 1), "rgb": ("RGB", 6), "cmyk": ("CMYK", 30), "palette": ("P", 60), "rgba": ("RGBA", 1)}
    for mode, (stored, tolerance) in expected.items():
        path = tmp_path / (f"{mode}.jpg" if mode in ("grey", "rgb", "cmyk") else f"{mode}.png")
        picture = Image.fromarray(image)
        (picture.quantize(8) if stored == "P" else picture.convert(stored)).save(path, quality=95)
        read, found = read_with_mode(path)
        assert found == mode
        wanted = np.repeat(np.asarray(picture.convert("L"))[..., None], 3, 2) if mode == "grey" else image
        assert np.abs(read.astype(int) - wanted).mean() < tolerance
    deep = (np.mgrid[:40, :50].sum(0) * 700).astype(np.uint16)
    for name in ("deep.png", "deep.tiff"):
        read, found = read_with_mode(encode(tmp_path, name, deep))
        assert found == "grey16"
        np.testing.assert_allclose(read[..., 1], deep / 257, atol=1.01, err_msg="16 bits by their full range")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_what_is_transparent_lies_over_black(tmp_path, name):
    image, alpha = make_image(201), np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, WIDTH // 4 :], alpha[:, WIDTH // 2 :] = 128, 255
    flags = (cv2.IMWRITE_WEBP_QUALITY, 101) if name.endswith("webp") else ()
    read, mode = read_with_mode(encode(tmp_path, name, np.dstack([image[..., ::-1], alpha]), *flags))
    assert mode == "rgba"
    expected = image * (alpha[..., None] / 255)
    np.testing.assert_allclose(read[:, WIDTH // 4 :], expected[:, WIDTH // 4 :], atol=2)
    assert read[:, : WIDTH // 4].max() == 0


def test_palette_with_a_clear_colour(tmp_path):
    picture = Image.fromarray(make_image(5)).quantize(8)
    clear = int(np.asarray(picture)[HEIGHT * 3 // 4, WIDTH // 4])
    picture.save(tmp_path / "a.png", transparency=clear)
    read = read_image(tmp_path / "a.png")
    assert read[HEIGHT * 3 // 4, WIDTH // 4].max() == 0
    assert read[HEIGHT * 3 // 4, WIDTH * 3 // 4].tolist() == pytest.approx([30, 40, 200], abs=30)


def test_transparent_image_is_turned_upright_too(tmp_path):
    image, alpha = make_image(77), np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[: HEIGHT // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.where(alpha[..., None] > 0, image, 0), 3)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def smooth_image(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize(("min_scale", "reduced"), [(1, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.1, 8), (0, 8)])
def test_jpeg_comes_as_the_means_of_whole_blocks(tmp_path, min_scale, reduced, flags):
    image = smooth_image(320, 480)
    encode(tmp_path, "a.jpg", image[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 95, *flags)
    picture = FrameReader(tmp_path).read("a.jpg", None, min_scale=min_scale)
    assert (picture.reduced, picture.mode) == (reduced, "rgb")
    blocks = read_image(tmp_path / "a.jpg").reshape(320 // reduced, reduced, 480 // reduced, reduced, 3).mean((1, 3))
    assert np.abs(picture.image - blocks).mean() < 1
    if reduced > 1:
        assert np.abs(picture.image[:, 1:] - blocks[:, :-1]).mean() > 3, "a shift by a block would show"


@pytest.mark.parametrize(("size", "min_side", "reduced"), [
    ((320, 480), 120, 4), ((320, 480), 121, 2), ((320, 480), 481, 1), ((480, 320), 120, 4),
    ((320, 484), 0, 4), ((322, 484), 0, 2), ((321, 480), 0, 1),
])  # fmt: skip
def test_jpeg_is_reduced_by_what_divides_its_sides_and_leaves_enough(tmp_path, size, min_side, reduced):
    encode(tmp_path, "a.jpg", cv2.resize(smooth_image(320, 480), size[::-1]))
    picture = FrameReader(tmp_path).read("a.jpg", None, min_scale=0, min_side=min_side)
    assert picture.reduced == reduced
    assert picture.image.shape[:2] == (size[0] // reduced, size[1] // reduced)


def test_only_jpegs_are_reduced(tmp_path):
    for name in ("a.png", "a.webp", "a.bmp"):
        encode(tmp_path, name, smooth_image(320, 480))
        assert FrameReader(tmp_path).read(name, None, min_scale=0).reduced == 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_reduced_jpeg_is_turned_upright_in_every_mode(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth_image(320, 480)).convert(mode).save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole, picture = read_image(tmp_path / "a.jpg"), FrameReader(tmp_path).read("a.jpg", None, min_scale=0.5)
    assert picture.image.shape == (240, 160, 3)
    assert picture.mode == {"L": "grey", "CMYK": "cmyk", "RGB": "rgb"}[mode]
    assert np.abs(picture.image - whole.reshape(240, 2, 160, 2, 3).mean((1, 3))).mean() < 1


def test_cut_off_jpeg_is_unreadable_at_any_size(tmp_path):
    path = cut(encode(tmp_path, "a.jpg", smooth_image(320, 480)), 0.6)
    assert FrameReader(tmp_path).read(path.name, None, min_scale=0).status == "unreadable"


def with_exif(data, payload):
    """A JPEG with an Exif block right behind its start marker."""
    block = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]


def orientation(value):
    return b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01" + value.to_bytes(2, "big") + b"\0\0" + bytes(4)


@pytest.mark.parametrize(("value", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, value, turns):
    data = encode(tmp_path, "a.jpg", make_image(5)[..., ::-1]).read_bytes()
    (tmp_path / "b.jpg").write_bytes(with_exif(data, orientation(value)))
    expected = np.rot90(make_image(5), turns).astype(float)
    read = read_image(tmp_path / "b.jpg")
    assert read.shape == expected.shape
    assert np.abs(read - expected).mean() < 8


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off_jpeg_is_refused(tmp_path, share, flags):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    path = encode(tmp_path, "a.jpg", noise, *flags)
    assert read_image(path).shape == (120, 160, 3)
    preview = cv2.imencode(".jpg", noise[:16, :16])[1].tobytes()
    path.write_bytes(with_exif(path.read_bytes(), preview))  # whose end marker is not the picture's
    assert read_image(path).shape == (120, 160, 3)
    with pytest.raises(DataError, match=r"cut-a\.jpg is cut off"):
        read_image(cut(path, share))


def test_jpeg_with_bytes_behind_its_end_is_read(tmp_path):
    path = encode(tmp_path, "a.jpg", make_image(1))
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp"])
def test_other_cut_off_images_are_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    with pytest.raises(DataError, match=f"cut-{name}"):
        read_image(cut(encode(tmp_path, name, noise), 0.6))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff" * 50, b"\xff\xd8" + b"\xff" * 50, b"text", bytes(99)]
)
def test_what_is_not_an_image(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for wrong in (path, tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(DataError, match=wrong.name):
            read_image(wrong)


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    write_video(root / "a.mp4", 60)
    encode(root, "a.png", make_image(3)[..., ::-1])
    with zipfile.ZipFile(root / "more.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(root / "a.mp4", "videos/b.mp4")
        file.write(root / "a.png", "images/b.png")
        file.writestr("images/empty.png", b"")
    return root


@pytest.mark.parametrize("source", ["a.mp4", "more.zip::videos/b.mp4"])
def test_frames_of_a_video_by_their_index(raw, source):
    reader = FrameReader(raw)
    wanted = [0, 1, 2, 7, 7, 30, 59, 4, 5]
    pictures = [reader.read(source, index) for index in wanted]
    assert [read_number(p.image) for p in pictures] == wanted
    assert [p.time_s for p in pictures] == pytest.approx([n / 25 for n in wanted], abs=1e-3)
    assert {(p.status, p.mode) for p in pictures} == {("ok", "video")}
    assert reader.read(source, 60).status == "missing", "beyond its end"
    assert read_number(reader.read(source, 3).image) == 3


def test_a_video_is_decoded_once(raw, monkeypatch):
    decoded = []
    whole = Video.__iter__
    monkeypatch.setattr(Video, "__iter__", lambda self: (decoded.append(f.index) or f for f in whole(self)))
    reader = FrameReader(raw)
    for index in range(0, 60, 2):
        reader.read("a.mp4", index)
        reader.read("a.png", None)
    assert decoded == list(range(59))


def test_cut_off_video_keeps_its_decoded_part(raw, caplog):
    write_video(raw / "long.avi", 200, codec="mpeg4")
    name = cut(raw / "long.avi", 0.5).name
    reader = FrameReader(raw)
    status = [reader.read(name, index).status for index in range(200)]
    kept = status.index("missing")
    assert 60 < kept < 160
    assert set(status[: kept - 2]) == {"ok"}
    assert set(status[kept:]) == {"missing"}
    assert caplog.text.count("ends early") == 1


@pytest.mark.parametrize(
    ("source", "index", "status"),
    [
        (None, None, "missing"),
        ("absent.png", None, "missing"),
        ("more.zip::absent.png", None, "missing"),
        ("absent.zip::a.png", None, "missing"),
        ("absent.mp4", 3, "missing"),
        ("a.png", 3, "unreadable"),  # an image, and no video
        ("noise.mp4", 3, "unreadable"),
        ("noise.zip::a.png", None, "unreadable"),
        ("more.zip::images/empty.png", None, "unreadable"),
        ("../secret.png", None, "unreadable"),
        ("more.zip::images/b.png", None, "ok"),
    ],
)
def test_status_says_what_became_of_a_source(raw, source, index, status):
    for name in ("noise.mp4", "noise.zip"):
        (raw / name).write_bytes(np.random.default_rng(0).bytes(5000))
    encode(raw.parent, "secret.png", make_image(1))
    picture = FrameReader(raw).read(source, index)
    assert picture.status == status
    assert (picture.image is None) == (status != "ok")


def test_damaged_member_of_a_zip_is_unreadable(raw):
    data = bytearray((raw / "more.zip").read_bytes())
    with zipfile.ZipFile(raw / "more.zip") as file:
        at = file.getinfo("images/b.png").header_offset + 60
    data[at : at + 20] = bytes(20)
    (raw / "more.zip").write_bytes(bytes(data))
    reader = FrameReader(raw)
    assert reader.read("more.zip::images/b.png", None).status == "unreadable"
    assert reader.read("more.zip::videos/b.mp4", 0).status == "ok"


def test_frame_that_the_decoder_made_up_is_unreadable(raw, monkeypatch):
    whole = Video.__iter__
    monkeypatch.setattr(Video, "__iter__", lambda self: (replace(f, damaged=f.index == 3) for f in whole(self)))
    reader = FrameReader(raw)
    assert [reader.read("a.mp4", n).status for n in (2, 3, 4)] == ["ok", "unreadable", "ok"]
    assert reader.read("a.mp4", 3).image is None
    assert reader.read("a.mp4", 3).time_s == pytest.approx(0.12, abs=1e-3)
