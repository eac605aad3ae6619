"""Evaluation: a model and the planned frames of shards in, a row with probabilities for each of them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe import schema
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, clip_batches, plan_runs
from aupipe.config import InputSpec
from aupipe.models._sequences import CHUNK, Stream, is_temporal
from aupipe.pixels import read_frames
from aupipe.shards import read_window


def predict_table(
    model: nn.Module,
    description: Description,
    plan: pa.Table,
    shards: Path,
    spec: ClipSpec,
    *,
    chunk: int = CHUNK,
    device: str = "cpu",
) -> pa.Table:
    """One row per planned frame, in plan order, after schema.predictions_schema; no probability where no face was found.

    A frame model reads the plan's clips. A temporal model reads every contiguous run of frames of a session as one sequence,
    whatever the clips are, `chunk` frames at a time: a frame's context ends where its recording has a gap and nowhere else.
    Frames without a face are zeros in a sequence, as in training. Neither batches nor chunks change the numbers beyond
    rounding, and memory does not grow with the length of a session but by its probabilities.
    """
    model.eval()
    if is_temporal(model):
        probs = _predict_runs(model, description.input, plan, shards, replace(spec, frames=chunk, batch=1), device)
    else:
        probs = _predict_clips(model, description.input, plan, shards, spec, device)
    aus = description.au_set
    columns = ["subject", "session", "frame", "status", *aus.columns]
    tables = []
    clips = zip(*(plan[name].to_pylist() for name in ("path", "start", "frames")), strict=True)
    for (path, start, count), probs_TM in zip(clips, probs, strict=True):
        table = read_window(shards, path, start, count, 1, columns)
        ok = np.array([status == schema.OK for status in table["status"].to_pylist()])
        for column, values in zip(aus.probability_columns, probs_TM.T, strict=True):
            table = table.append_column(column, pa.array(values, pa.float32(), mask=~ok))
        tables.append(table)
    return pa.concat_tables(tables).cast(schema.predictions_schema(aus))


def _predict_clips(
    model: nn.Module, read: InputSpec, plan: pa.Table, shards: Path, spec: ClipSpec, device: str
) -> Iterator[NDArray[np.float32]]:
    """Probabilities (frames, M) of each of the plan's clips."""
    for batch in clip_batches(plan, shards, spec, train=False):
        with torch.no_grad():
            logits_BTM = model(read_frames(batch, model, read, device, train=False)).logits_BTM
        for real_T, probs_TM in zip(batch.real_BT, _probabilities(logits_BTM), strict=True):
            yield probs_TM[real_T]


def _predict_runs(
    model: nn.Module, read: InputSpec, plan: pa.Table, shards: Path, spec: ClipSpec, device: str
) -> Iterator[NDArray[np.float32]]:
    """Probabilities (frames, M) of each of the plan's clips, of sequences in which they have all their context."""
    runs, stream = plan_runs(plan, shards, spec.frames), Stream(model, spec.frames)
    windows = list(zip(*(runs[name].to_pylist() for name in ("path", "start", "frames", "ends")), strict=True))
    length = {path: start + count for path, start, count, _ in windows}  # the last one of a session stays
    sessions: dict[str, NDArray[np.float32]] = {}
    parts: list[NDArray[np.float32]] = []
    for (path, start, count, ends), batch in zip(windows, clip_batches(runs, shards, spec, train=False), strict=True):
        frames_BTCHW = read_frames(batch, model, read, device, train=False)[:, :count]
        outputs = [stream.push(frames_BTCHW), stream.close() if ends else None]
        parts += [_probabilities(output.logits_BTM)[0] for output in outputs if output is not None]
        if ends:
            run, parts = np.concatenate(parts), []
            session = sessions.setdefault(path, np.full((length[path], run.shape[1]), np.nan, np.float32))
            session[start + count - len(run) : start + count] = run
    for path, start, count in zip(*(plan[name].to_pylist() for name in ("path", "start", "frames")), strict=True):
        yield sessions[path][start : start + count]


def _probabilities(logits: Tensor) -> NDArray[np.float32]:
    return logits.float().sigmoid().cpu().numpy()
