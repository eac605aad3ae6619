"""What copies of corpora suffer in their frames and videos. Each function does one kind of damage to a recording on disk and
returns where, and what it was.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.recording import Written

_UPRIGHT_AFTER_TURN = 6  # Exif's orientation of a picture that must be turned clockwise


def _images(written: Written) -> list[Path]:
    assert written.folder is not None
    return sorted(written.folder.iterdir())


def _pick_labelled(written: Written, rng: np.random.Generator) -> Path:
    """An image of a frame that has a label row, not the first or last of them if there are more."""
    labelled = [path for path in _images(written) if int(path.stem) in written.numbers]
    inner = labelled[1:-1] or labelled
    return inner[int(rng.integers(len(inner)))]


def truncate_video(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    assert written.video is not None
    data = written.video.read_bytes()
    kept = int(len(data) * rng.uniform(0.5, 0.8))
    written.video.write_bytes(data[:kept])
    return written.video, f"{kept} of {len(data)} bytes"


def lose_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    path.unlink()
    return path, f"frame {int(path.stem)} is labelled and has no image"


def empty_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    path.write_bytes(b"")
    return path, f"frame {int(path.stem)} has 0 bytes"


def cut_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    path = _pick_labelled(written, rng)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path, f"frame {int(path.stem)} has {len(data) // 2} of {len(data)} bytes"


def pad_otherwise(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    images = _images(written)
    for image in images:
        image.rename(image.with_name(f"{int(image.stem)}.jpg"))
    return images[0].parent, "frame numbers in file names are not padded"


def litter(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    media = written.folder or written.video
    assert media is not None
    shadow = written.raw / "__MACOSX" / media.relative_to(written.raw)
    names = [*(f".{ending}" for ending in ("DS_Store", f"_{media.name}")), "Thumbs.db"]
    if written.folder is not None:
        litter = [written.folder / name for name in (*names, f"._{_images(written)[0].name}")]
    else:  # beside the files of one AU each: a subject's own folder
        litter = [written.tables[0].with_name(name) for name in (*names, f"._{written.tables[0].name}")]
    litter.append(shadow.parent / f"._{media.name}")
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7litter")
    written.owned += [path for path in litter if path.parent != written.folder]
    return litter[0].parent, ", ".join(path.relative_to(written.raw).as_posix() for path in litter)


def lose_media(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    media = written.folder or written.video
    assert media is not None
    if written.folder is not None:
        for image in _images(written):
            image.unlink()
        written.folder.rmdir()
    for path in written.owned:
        if path.suffix == ".avi":
            path.unlink(missing_ok=True)
    return media, "labels without frames"


def grey_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """A frame without its colours, in one channel."""
    path = _pick_labelled(written, rng)
    path.write_bytes(_encode(_decode(path, cv2.IMREAD_GRAYSCALE)))
    return path, f"frame {int(path.stem)} is grey"


def turn_image(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """A frame that lies on its side, and an Exif tag that says so."""
    path = _pick_labelled(written, rng)
    turned = cv2.rotate(_decode(path, cv2.IMREAD_COLOR), cv2.ROTATE_90_COUNTERCLOCKWISE)
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, _UPRIGHT_AFTER_TURN, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    data = _encode(turned)
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    return path, f"frame {int(path.stem)} lies on its side, with an Exif orientation of {_UPRIGHT_AFTER_TURN}"


def copy_to_second_root(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """All frames once more, under the root of another release."""
    assert written.folder is not None
    root, *below = written.folder.relative_to(written.raw).parts
    other = written.raw.joinpath("cropped_aligned_new_50_vids" if root == "cropped_aligned" else "2D+3D", *below)
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(written.folder, other, copy_function=shutil.copyfile)
    written.owned.append(other)
    return other, f"the same {len(_images(written))} files as in {written.folder.relative_to(written.raw).as_posix()}"


def zip_labels(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """A folder of label files that is still in its zip."""
    folder = written.tables[0].parent
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for table in sorted(written.tables):  # with zip's earliest date, so that the bytes are always the same
            file.writestr(zipfile.ZipInfo(f"{folder.name}/{table.name}"), table.read_bytes(), zipfile.ZIP_DEFLATED)
            table.unlink()
    folder.rmdir()
    written.owned.append(archive)
    return archive, f"{len(written.tables)} label files are in a zip"


def _decode(path: Path, channels: int) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), channels)
    assert image is not None, path
    return image.astype(np.uint8, copy=False)


def _encode(image: Any) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
