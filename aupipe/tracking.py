"""MLflow: runs while they train, and the registry of models that predict without this repository's params.

The default is a SQLite file and a folder of artefacts in the working directory; MLFLOW_TRACKING_URI overrides it. A
registered model is a pyfunc without any pickle: safetensors, JSON and three lines of code that call this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before MLflow is imported: no telemetry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from aupipe import checkpoint
from aupipe.checkpoint import Description
from aupipe.config import ALIGN_SIZE, read_yaml
from aupipe.predictor import AUPredictor
from aupipe.schema import ConfigError, DataError

_CODE = "from mlflow.models import set_model\n\nfrom aupipe.tracking import AUModel\n\nset_model(AUModel())\n"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the working directory, absolute so that workers elsewhere find it too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def start_run(corpus: str, name: str, params: dict[str, Any], tags: dict[str, str], resume: str | None = None) -> str:
    """Start a run in the corpus's experiment, or go on with `resume` if it is still there; return its id."""
    with _alone(tracking_uri()):
        client = MlflowClient(tracking_uri())
        if resume is not None and _set_status(client, resume, "RUNNING"):
            return resume
        experiment = _experiment(client, f"aupipe-{corpus}")
    run = client.create_run(experiment, run_name=name)
    client.log_batch(
        run.info.run_id,
        params=[Param(key, str(value)) for key, value in _flatten(params)],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    return run.info.run_id


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time: two that find no SQLite file would both make its tables, and one would fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def log_epoch(uri: str, run_id: str, record: dict[str, Any]) -> None:
    """Log an epoch's record: loss terms, F1 and speed of both sides, and F1 of every AU on `val`."""
    now = round(record.get("time", 0) * 1000) or _now_ms()
    figures = dict(_flatten({k: v for k, v in record.items() if k not in ("epoch", "phase", "time")}))
    metrics = [Metric(k, float(v), now, record["epoch"]) for k, v in figures.items() if v is not None]
    MlflowClient(uri).log_batch(run_id, metrics=metrics)


def log_results(run_id: str, results: dict[str, Any]) -> None:
    """Log the test fold's figures, one metric each, under test.*"""
    metrics = [Metric(f"test.{k}", float(v), _now_ms(), 0) for k, v in _flatten(results) if isinstance(v, (int, float))]
    MlflowClient(tracking_uri()).log_batch(run_id, metrics=metrics)


def end_run(run_id: str, status: str = "FINISHED") -> None:
    MlflowClient(tracking_uri()).set_terminated(run_id, status)


def register(directory: Path, run_id: str, name: str, tags: dict[str, str], *, alias: str | None) -> int:
    """Log the checkpoint as a pyfunc model of the run, register it as `name`, and return the new version.

    Tags go on the version; `alias` is pointed at it. No face is stored: the input example is grey.
    """
    mlflow.set_tracking_uri(tracking_uri())
    description = checkpoint.load_description(directory)
    size = ALIGN_SIZE[description.input.align]
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        code = Path(scratch) / "model.py"
        code.write_text(_CODE, encoding="utf-8")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"checkpoint": str(directory)},
            signature=_signature(description, size),
            input_example=np.full((1, size, size, 3), 128, np.uint8),
            pip_requirements=[f"aupipe=={_version()}"],
            registered_model_name=name,
        )
    client = MlflowClient(tracking_uri())
    version = info.registered_model_version
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)
    if alias:
        client.set_registered_model_alias(name, alias, str(version))
    return int(version)


def load_predictor(uri: str) -> AUPredictor:
    """A predictor for a registered model (models:/name@alias, models:/name/3) or a checkpoint directory.

    Raises ConfigError if there is no such model.
    """
    if not uri.startswith("models:/"):
        return AUPredictor.load(Path(uri))
    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_registry_uri(tracking_uri())
    try:
        local = mlflow.artifacts.download_artifacts(artifact_uri=uri)
    except MlflowException as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{uri} is not in the registry at {tracking_uri()} ({reason}); run `dvc repro` first") from None
    found = sorted(Path(local).glob("artifacts/*/" + checkpoint.DESCRIPTION))
    if not found:
        raise DataError(f"{uri} holds no aupipe checkpoint; register one with `dvc repro register`")
    return AUPredictor.load(found[0].parent)


class AUModel(mlflow.pyfunc.PythonModel):
    """The body of a registered model: aligned faces (N, H, W, 3) uint8 RGB → {"AU01_p": (N,) float32, …}.

    To a temporal model the faces of a call are one sequence of consecutive frames.
    """

    def load_context(self, context: Any) -> None:
        self.predictor = AUPredictor.load(Path(context.artifacts["checkpoint"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        probs_NM = self.predictor.predict_faces(model_input)
        return dict(zip(self.predictor.aus.probability_columns, probs_NM.T, strict=True))


def model_name(corpus: str, recipe: str) -> str:
    """The registered model's name; one version per fold."""
    return f"aupipe-{corpus}-{recipe}"


def lineage(lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """Where a result comes from, as tags: the git commit, and the DVC hash of every output that is up to date so far."""
    tags = {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        tags["git_commit"] = commit.stdout.strip()
    stages = (read_yaml(lock) or {}).get("stages", {}) if lock.exists() else {}
    for stage in stages.values():
        for out in stage.get("outs", []):
            tags[f"dvc/{out['path']}"] = out["md5"]
    return tags


def figures_as_tags(figures: dict[str, Any]) -> dict[str, str]:
    """The headline figures of metrics.json and the AU list, as tags of a model version."""
    tags = {name: f"{figures[name]:.4f}" for name in ("f1", "auc", "accuracy") if figures[name] is not None}
    return tags | {"aus": " ".join(map(str, figures["aus"]))}


def _signature(description: Description, size: int) -> ModelSignature:
    faces = TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))
    columns = description.au_set.probability_columns
    return ModelSignature(
        inputs=Schema([faces]), outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,), name=c) for c in columns])
    )


def _experiment(client: MlflowClient, name: str) -> str:
    """The experiment's id; a new one keeps its artefacts in mlartifacts/ unless a server decides."""
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    local = tracking_uri().startswith("sqlite:")
    return client.create_experiment(name, Path("mlartifacts").resolve().as_uri() if local else None)


def _set_status(client: MlflowClient, run_id: str, status: str) -> bool:
    try:
        client.update_run(run_id, status)
    except MlflowException:  # another or a new database
        return False
    return True


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _now_ms() -> int:
    from time import time_ns

    return time_ns() // 1_000_000


def _version() -> str:
    from aupipe import __version__

    return __version__
