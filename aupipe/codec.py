"""How an aligned face lies in a shard: as JPEG, or raw, as its plain pixels. The only place that writes and reads either.

A raw face has as many bytes as its pixels, three for each; no JPEG of it is that long. So a column tells its own codec.
cv2 decodes as fast as the best of the others (simplejpeg: 1.00 to 1.04 of it, the same pixels), so it needs no company.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.schema import DataError

THREADS = 2  # that decode side by side: the interpreter is released meanwhile


def encode_jpeg(image_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 → JPEG bytes."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"an image of shape {image_HWC.shape} could not be encoded as JPEG")
    return data.tobytes()


def encode_face(image_HWC: NDArray[np.uint8], codec: str, quality: int) -> bytes:
    """An aligned face as it lies in a shard. codec: of `config.CODECS`; `quality` is that of a JPEG."""
    return image_HWC.tobytes() if codec == "raw" else encode_jpeg(image_HWC, quality)


def decode_face(data: Any, size: int) -> NDArray[np.uint8] | None:
    """The bytes of a face in a shard → (size, size, 3) uint8 RGB; None for what is no face of that size."""
    flat = np.frombuffer(data, np.uint8)
    if flat.size == 3 * size * size:
        return flat.reshape(size, size, 3)
    image: Any = cv2.imdecode(flat, cv2.IMREAD_COLOR_RGB) if flat.size else None
    return image if image is not None and image.shape == (size, size, 3) else None


def read_jpeg(data: bytes, size: int) -> bytes:
    """The bytes of a face in a shard as a JPEG, for a page that shows it."""
    raw = len(data) == 3 * size * size
    return encode_jpeg(np.frombuffer(data, np.uint8).reshape(size, size, 3), 95) if raw else data


def decode_faces(faces_N: pa.Array, out_NHWC: NDArray[np.uint8], names: list[str], pool: ThreadPoolExecutor | None) -> None:
    """A binary column of faces → pixels, on the threads of the pool; zeros where a face is null.

    names: of the shards that equal parts of the column come from, in order. Raises DataError with the name of the one that
    holds something else than a face.
    """
    offsets, data = _read_layout(faces_N)
    valid = faces_N.is_valid().to_numpy(zero_copy_only=False)
    out_NHWC[~valid] = 0
    rows = np.flatnonzero(valid)
    pixels = int(np.prod(out_NHWC.shape[1:]))
    if len(rows) and (np.diff(offsets) == pixels * valid).all():
        raw = data[offsets[0] : offsets[-1]].reshape(-1, *out_NHWC.shape[1:])
        out_NHWC[rows if len(rows) < len(valid) else slice(None)] = raw
        return
    work = partial(_decode_rows, data=data, offsets=offsets, out_NHWC=out_NHWC, names=names)
    # Few large shares: a task of its own for every face costs as much as a tenth of its decoding.
    shares = np.array_split(rows, max(2 * THREADS, len(rows) // 64))
    for _ in pool.map(work, shares) if pool else map(work, [rows]):
        pass


def _read_layout(column: pa.Array) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
    """Where each value of a binary column begins and ends, and the bytes of all of them."""
    _, offsets, data = column.buffers()
    kind: Any = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    within: NDArray[Any] = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1]
    return within, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def _decode_rows(
    rows: NDArray[np.integer],
    data: NDArray[np.uint8],
    offsets: NDArray[np.integer],
    out_NHWC: NDArray[np.uint8],
    names: list[str],
) -> None:
    size = out_NHWC.shape[1]
    for row in rows.tolist():
        image = decode_face(data[offsets[row] : offsets[row + 1]], size)
        if image is None:
            path = names[row * len(names) // len(out_NHWC)]
            raise DataError(f"the shard {path} holds a face that is no face of its size; run `dvc repro shards` to mend it")
        out_NHWC[row] = image
