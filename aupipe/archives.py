"""Files of a corpus where they lie: in folders, or inside zips, which are read in place and never extracted.

A place is a path. From a zip on it reads `2D+3D/F001.zip::F001/T1/0000.jpg`; a zip inside a zip adds another `::`. A zip
counts as a folder. Names are compared in Unicode's composed form (NFC) and without regard to case, because copies made on
other systems differ in both; the path of an entry keeps the spelling on disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import lzma
import os
import re
import shutil
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aupipe.schema import DataError, inside

_log = logging.getLogger(__name__)

MARK = "::"
_JUNK_FILES, _JUNK_FOLDERS = {"thumbs.db", "desktop.ini"}, {"__macosx"}  # hidden names are ignored by their dot
_BEHIND_ZIP = re.compile(r"(?i)(?<=\.zip)::")
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_DIGITS = re.compile(r"(\d+)")
_COMPARED = 16  # files of two folders that may be copies
_MAX_NESTED = 2**30  # bytes of a zip inside a zip, which is held in memory


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder: its name (NFC), its path as on disk, and whether it can be listed, as a folder or zip can.

    The path is text, because a corpus has millions of images, and a Path takes longer to make than a folder to list.
    """

    name: str
    place: str
    folder: bool

    @property
    def path(self) -> Path:
        return Path(self.place)


def is_junk(name: str, *, folder: bool = False) -> bool:
    """Whether a name is hidden or left behind by a file manager (.DS_Store, ._x, Thumbs.db, __MACOSX)."""
    return name.startswith(".") or name.lower() in (_JUNK_FOLDERS if folder else _JUNK_FILES)


def split_zip(path: Path | str) -> tuple[Path, tuple[str, ...]]:
    """`a.zip::b/c.jpg` → (a.zip, ("b/c.jpg",)); a path without a zip in it has no members."""
    outer, *members = _BEHIND_ZIP.split(os.fspath(path))
    return Path(outer), tuple(members)


def file_of(source: str) -> str:
    """The file that a source of a manifest is, or, of a member, the zip that it is in."""
    return _BEHIND_ZIP.split(source, maxsplit=1)[0]


def locate(root: Path, source: str) -> Path:
    """`root / source`, where a zip's members are left as they are. Raises DataError if the file would lie outside `root`."""
    outer, *members = _BEHIND_ZIP.split(source)
    return Path(MARK.join([str(inside(root, outer)), *members]))


def list_folder(path: Path) -> list[Entry]:
    """What lies in a folder or zip, or in a folder of a zip, without junk; numbers in names sort by value.

    Raises DataError for what cannot be listed.
    """
    outer, members = split_zip(path)
    is_zip = bool(members) or (outer.suffix.lower() == ".zip" and outer.is_file())
    found = _list_zip(path) if is_zip else _list_directory(outer)
    return sorted((e for e in found if not is_junk(e.name, folder=e.folder)), key=lambda e: _natural(e.name))


def find(folder: Path, pattern: str) -> list[Entry]:
    """The entries of `folder` whose whole name matches a regular expression, in whatever case."""
    expression = re.compile(pattern, re.IGNORECASE)
    return [entry for entry in list_folder(folder) if expression.fullmatch(entry.name)]


def search(root: Path, pattern: str, *, depth: int = 3, folders: bool = True, skip: str = "") -> list[Entry]:
    """The folders (or files) below `root` whose name matches, at most `depth` levels down; nothing below a match.

    The shallowest come first. Folders that cannot be listed are passed over: the inventory reports them. Those whose name
    matches `skip` are not looked into, which spares listing millions of images.
    """
    expression, unwanted = re.compile(pattern, re.IGNORECASE), re.compile(skip, re.IGNORECASE)
    level, found = [root], []
    for _ in range(depth):
        below: list[Path] = []
        for folder in level:
            for entry in _list_quietly(folder):
                if entry.folder == folders and expression.fullmatch(entry.name):
                    found.append(entry)
                elif entry.folder and not unwanted.fullmatch(entry.name):
                    below.append(entry.path)
        level = below
    return found


def unwrap(path: Path) -> Path:
    """The folder that is all that a zip holds, as often one of its own name is; any other path as it is."""
    inside_zip = _list_quietly(path) if path.suffix.lower() == ".zip" else []
    return inside_zip[0].path if len(inside_zip) == 1 and inside_zip[0].folder else path


def exists(path: Path) -> bool:
    """Whether a file is there, on disk or in its zip. Raises DataError for a damaged zip."""
    outer, members = split_zip(path)
    if not members:
        return outer.exists()
    return outer.exists() and _member(path) is not None


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, on disk or in a zip. Raises DataError for one that is absent, unreadable or damaged."""
    outer, members = split_zip(path)
    try:
        if not members:
            return outer.read_bytes()
        info = _member(path)
        if info is None:
            raise DataError(f"cannot read {path}: the zip has no such member")
        return _archive(path).read(info)
    except (*_DAMAGE, OSError) as error:
        raise DataError(f"cannot read {path}: {_say(error)}") from None


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file that other libraries can open by its name: `path` itself, or a copy of a zip's member for as long as it lasts.

    Raises DataError for a member that is absent or damaged, or where there is no room for it.
    """
    if not split_zip(path)[1]:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="aupipe-") as folder:
        copy = Path(folder) / path.name.rpartition(MARK)[2]
        try:
            info = _member(path)
            if info is None:
                raise DataError(f"cannot read {path}: the zip has no such member")
            with _archive(path).open(info) as member, copy.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
        except (*_DAMAGE, OSError) as error:
            raise DataError(f"cannot read {path}: {_say(error)}") from None
        yield copy


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, or two folders of files, hold the same bytes, wherever they lie. False where one cannot be read.

    Of folders, all names and sizes are compared, and the bytes of a few files: of sessions of thousands of images, equal
    sizes throughout are no coincidence.
    """
    try:
        files, others = _files(one), _files(other)
        if files.keys() != others.keys() or any(_size(path) != _size(others[name]) for name, path in files.items()):
            return False
        some = sorted(files)[:: max(1, len(files) // _COMPARED)]
        return all(_digest(files[name]) == _digest(others[name]) for name in some)
    except (DataError, *_DAMAGE, OSError):
        return False


def _files(path: Path) -> dict[str, Path]:
    """The files of a folder or zip by name; a file itself by none."""
    outer, members = split_zip(path)
    listed = _member(path) is None if members else outer.is_dir() or outer.suffix.lower() == ".zip"
    return {entry.name: entry.path for entry in list_folder(path) if not entry.folder} if listed else {"": path}


def _size(path: Path) -> int:
    info = _member(path) if split_zip(path)[1] else None
    return path.stat().st_size if info is None else info.file_size


def _digest(path: Path) -> str:
    info = _member(path) if split_zip(path)[1] else None
    with path.open("rb") if info is None else _archive(path).open(info) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def relative(path: Path, root: Path) -> str:
    """A path below `root` as the POSIX text that manifests hold."""
    return path.relative_to(root).as_posix()


def _say(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or "the member is damaged"


def _list_directory(folder: Path) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in found:
        if not _is_text(entry.name):
            _log.warning("left out %r: its name is no UTF-8 text; rename it", entry.path)
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that leads to itself: a file that cannot be read
            is_folder = False
        is_zip = entry.name.lower().endswith(".zip")
        yield Entry(unicodedata.normalize("NFC", entry.name), entry.path, is_folder or is_zip)


def _list_quietly(folder: Path) -> list[Entry]:
    try:
        return list_folder(folder)
    except DataError:
        return []


def _is_text(name: str) -> bool:
    """Whether a name can stand in a manifest; a file system may hold others, of another code page."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_zip(path: Path) -> Iterator[Entry]:
    outer, members = split_zip(path)
    inner = members[-1].strip("/") if members else ""
    base = path if not members or members[-1].lower().endswith(".zip") else None
    if base is not None:
        prefix, inner = f"{path}{MARK}", ""
    else:
        prefix = f"{MARK.join([str(outer), *members[:-1]])}{MARK}"
    for name, is_folder in _index(*_identity(Path(prefix.removesuffix(MARK)))).get(inner, {}).items():
        full = f"{inner}/{name}" if inner else name
        is_zip = name.lower().endswith(".zip")
        yield Entry(unicodedata.normalize("NFC", name), prefix + full, is_folder or is_zip)


def _archive(path: Path) -> zipfile.ZipFile:
    """The zip that holds the member `path`."""
    outer, members = split_zip(path)
    return _open(*_identity(Path(MARK.join([str(outer), *members[:-1]]))))


def _member(path: Path) -> zipfile.ZipInfo | None:
    try:
        return _archive(path).getinfo(split_zip(path)[1][-1])
    except KeyError:
        return None


def _identity(archive: Path) -> tuple[str, int, int]:
    """What a cache goes by: a zip that was replaced is another one."""
    try:
        state = split_zip(archive)[0].stat()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}") from None
    return str(archive), state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=4)  # a directory of tens of thousands of members is read once, not once for each
def _open(archive: str, mtime_ns: int, size: int) -> zipfile.ZipFile:
    outer, members = split_zip(archive)
    try:
        if not members:
            return zipfile.ZipFile(outer)
        info = _member(Path(archive))
        if info is None or info.file_size > _MAX_NESTED:
            raise DataError(f"cannot read {archive}: no such zip, or too large to read inside another; extract it")
        return zipfile.ZipFile(io.BytesIO(read_bytes(Path(archive))))
    except (*_DAMAGE, OSError) as error:
        raise DataError(f"cannot read {archive}: {_say(error)}; copy it again, or extract it") from None


@functools.lru_cache(maxsize=4)
def _index(archive: str, mtime_ns: int, size: int) -> dict[str, dict[str, bool]]:
    """Folder inside a zip → the names in it, and whether each is a folder. Zips often lack entries for their folders."""
    tree: dict[str, dict[str, bool]] = {"": {}}
    for member in _open(archive, mtime_ns, size).namelist():
        *parents, name = member.rstrip("/").split("/")
        for depth, parent in enumerate(parents):
            tree.setdefault("/".join(parents[:depth]), {})[parent] = True
        tree.setdefault("/".join(parents), {}).setdefault(name, member.endswith("/"))
    return tree


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts T2 before T10, and names that differ in case alone always the same way."""
    parts = _DIGITS.split(name.lower())
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)] + [(0, name)]
