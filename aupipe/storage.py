"""Files in a store: an object store or another file system, named by a URL; a checkout keeps what they are called.

A store is `s3://bucket/prefix`, `gs://…`, `file:///…` or any other that pyarrow.fs knows, `fsspec+PROTOCOL://…` for those of
fsspec; options follow a `?`, as in `s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000`. Credentials come from the
environment alone. The address of a file is `STORE#path`, the path as it is, so that any process can open it by that text.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aupipe.schema import ConfigError, DataError

VARIABLE = "AUPIPE_STORAGE"
_WHOLE = {"s3", "gcs", "abfs"}  # an object appears when its upload is complete, and not before
_PIECE = 8 << 20


def store_of(folder: Path) -> str | None:
    """The store for what would lie in `folder` of the checkout: $AUPIPE_STORAGE/<folder>, or None for the checkout itself.

    Raises ConfigError for a URL that no store can be opened by, or one that holds a password: it would be written down.
    """
    root = os.environ.get(VARIABLE, "")
    if not root:
        return None
    url, mark, options = (root if "://" in root else Path(root).resolve().as_uri()).partition("?")
    store = f"{url.rstrip('/')}/{folder.as_posix()}{mark}{options}"
    if urlsplit(url).password or "#" in store:
        raise ConfigError(f"{VARIABLE} may hold neither a password nor a '#'; give credentials in variables of their own")
    try:
        _open(store)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{VARIABLE} names no store ({' '.join(str(error).split())}): s3://bucket/prefix is one") from None
    return store


def join(store: str, path: str) -> str:
    """The address of a file of a store."""
    return f"{store}#{path}"


def is_address(path: str) -> bool:
    """Whether a text is the address of a file in a store, and not a path in a folder."""
    return "://" in path


def list_files(store: str) -> dict[str, int]:
    """Path → bytes of every file in a store, none in one that is new. Raises DataError where it cannot be reached."""
    system, base = _open(store)
    try:
        found = system.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    except OSError as error:
        raise _unreachable(store, error) from None
    return {info.path[len(base) + 1 :]: info.size for info in found if info.is_file}


def put(source: Path, address: str) -> None:
    """Copy a local file into a store, where it appears whole or not at all. Raises DataError where it cannot be written."""
    system, path = _locate(address)
    whole = system.type_name in _WHOLE
    target = path if whole else f"{path}.{os.getpid()}.tmp"
    try:
        if not whole:
            system.create_dir(path.rpartition("/")[0], recursive=True)
        with source.open("rb") as file, system.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, _PIECE)
        if not whole:
            system.move(target, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # closing the stream has completed what was sent of it
            system.delete_file(target)
        if isinstance(error, OSError):
            raise _unreachable(address, error) from None
        raise


def delete(address: str) -> None:
    """Remove a file from a store, if it is there."""
    system, path = _locate(address)
    try:
        system.delete_file(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unreachable(address, error) from None


def open_parquet(address: str) -> pq.ParquetFile:
    """A Parquet file of a store, of which only the parts that are read are fetched. Raises OSError or ArrowException."""
    system, path = _locate(address)
    return pq.ParquetFile(system.open_input_file(path), metadata=_read_footer(address), pre_buffer=True)


@functools.lru_cache(maxsize=1024)  # files in a store are never changed, and a window needs its file's footer each time
def _read_footer(address: str) -> pq.FileMetaData:
    system, path = _locate(address)
    return pq.read_metadata(path, filesystem=system)


def _locate(address: str) -> tuple[pafs.FileSystem, str]:
    store, _, path = address.partition("#")
    system, base = _open(store)
    return system, f"{base}/{path}"


@functools.lru_cache(maxsize=16)
def _open(store: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(store)


def _unreachable(address: str, error: Any) -> DataError:
    said = " ".join(str(error).split())
    return DataError(f"cannot use the store {address} ({said}); mend {VARIABLE} or its credentials and run it again")
