"""Arrays in the memory of a machine that its processes share: the first one fills it, the last one removes it.

A file in /dev/shm or, where that has no room, in the system's folder for temporary files; `AUPIPE_SCRATCH` names another.
Beside it lies a lock that every user holds, so that what a killed process left behind is known to be nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.schema import replacing


@contextlib.contextmanager
def open_array(key: str, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> Iterator[NDArray[np.uint8]]:
    """The array uint8 of that key, read-only; where it is not there yet, `fill` writes it while others wait.

    Raises OSError where there is no room for it.
    """
    folder = _find_folder(key, int(np.prod(shape)))
    _sweep(folder, key)
    path = folder / f"{key}.array"
    lock = _hold(folder / f"{key}.lock", path)
    try:
        if not path.exists():
            with replacing(path) as temporary:
                fill(_create(temporary, shape))
        array = np.memmap(path, np.uint8, "r", shape=shape)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield array
    finally:
        with contextlib.suppress(BlockingIOError):  # somebody else uses it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder, key)
        os.close(lock)


def exists(key: str) -> bool:
    """Whether an array of that key is there or being made."""
    return any((folder / f"{key}.lock").exists() for folder in _folders())


def free_memory() -> int:
    """Bytes that this machine, or the container that we are in, can still give."""
    free = _read_number(Path("/proc/meminfo"), "MemAvailable:", 1024)
    limit, used = (_read_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        cached = _read_number(Path("/sys/fs/cgroup/memory.stat"), "inactive_file") or 0
        free = min(limit - used + cached, limit if free is None else free)
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free


def _read_number(path: Path, name: str = "", unit: int = 1) -> int | None:
    """The number after `name` at the start of a line, or None where there is no such thing."""
    try:
        lines = path.read_text().splitlines()
        return unit * int(next(line for line in lines if line.startswith(name)).removeprefix(name).split()[0])
    except (OSError, StopIteration, ValueError):
        return None


def _folders() -> list[Path]:
    """Where arrays may lie, only for this user: faces are nobody else's business."""
    named = os.environ.get("AUPIPE_SCRATCH")
    roots = [named] if named else ["/dev/shm", tempfile.gettempdir()]
    return [Path(root) / f"aupipe-{os.getuid()}" for root in roots if Path(root).is_dir()]


def _find_folder(key: str, size: int) -> Path:
    folders = _folders()
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or folder.is_symlink():
            continue
        if (folder / f"{key}.lock").exists() or shutil.disk_usage(folder).free > size:
            return folder
    raise OSError(f"{size / 1e9:.1f} GB have no room in {', '.join(map(str, folders))}")


def _create(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An empty file of the array's size, of which every byte is reserved: writing beyond what there is would kill us."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
    return np.memmap(path, np.uint8, "r+", shape=shape)


def _hold(path: Path, array: Path) -> int:
    """The lock's descriptor: with others where the array is there, alone where it has to be made."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            fcntl.flock(descriptor, kind)
            if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
                break  # it was removed while we waited
            if array.exists() or kind == fcntl.LOCK_EX:
                return descriptor
        os.close(descriptor)


def _sweep(folder: Path, key: str) -> None:
    """Remove what killed processes left: all arrays that nobody holds, but the one that is about to be used."""
    for path in folder.glob("*.lock"):
        if path.stem != key:
            with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder, path.stem)


def _remove(folder: Path, key: str) -> None:
    for path in (*folder.glob(f".{key}.array.*.tmp"), folder / f"{key}.array", folder / f"{key}.lock"):
        path.unlink(missing_ok=True)
