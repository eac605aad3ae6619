"""MLflow: runs while they train, and the registry of models that predict without this repository's params.

The default is a SQLite file and a folder of artefacts in the working directory; MLFLOW_TRACKING_URI overrides it. What a
training has to say goes into a journal in its folder first, so that a server may come and go. A registered model is a
pyfunc without any pickle: safetensors, JSON and three lines of code that call this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Before MLflow is imported: no telemetry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import mlflow
import numpy as np
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from aupipe import checkpoint
from aupipe.checkpoint import Description
from aupipe.config import ALIGN_SIZE, read_yaml
from aupipe.journal import Entry, Journal, masked, one_line
from aupipe.predictor import AUPredictor
from aupipe.runlog import RunLog
from aupipe.schema import ConfigError, DataError

logger = logging.getLogger(__name__)

RUN_TAG = "aupipe_run"  # our own name of a run: it is known before a server has answered, and finds the run again
# MLflow by itself waits 120 s for an answer, asks eight times and heeds a server that says to come back in an hour; libpq
# waits without end. What is set in the environment wins.
SHORT_WAITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "PGCONNECT_TIMEOUT": "10",
}
# What MLflow calls an internal error, or leaves to SQLAlchemy, and no waiting heals.
LASTING = r"(?i)database schema|SSLError|valid JSON|authentication|unable to open database|invalid url|no connection ada"

_CODE = "from mlflow.models import set_model\n\nfrom aupipe.tracking import AUModel\n\nset_model(AUModel())\n"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the working directory; a file is absolute, so that workers elsewhere find it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = _sqlite_file(uri)
    return uri if file is None else uri.replace(str(file), str(file.resolve()), 1)


class Tracker(RunLog):
    """A training's log that goes to MLflow. Another process that is sent one has its own."""

    def __init__(self, directory: Path, key: str, uri: str | None = None) -> None:
        self.directory, self.uri = directory.resolve(), uri or tracking_uri()
        super().__init__(self.directory, key, partial(_replay, self.uri), f"MLflow at {masked(self.uri)}", _monitors)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, (self.directory, self.key, self.uri)

    @classmethod
    def of(cls, directory: Path, record: dict[str, Any]) -> Tracker:
        """The tracker of a finished training, whose run.json is `record`."""
        tracker = cls(directory, record["tracking"]["key"])
        tracker.adopt(record["tracking"], record["history"])
        return tracker

    @property
    def run(self) -> str | None:
        """MLflow's id of the run, None until a server has given one."""
        return self.journal.position()[0]

    def start(self, corpus: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> Entry:
        """As `begin`. Raises ConfigError if the URI is wrong or the server refuses us; one that is away may come later."""
        first = self.begin(corpus, name, params, tags)
        error = self.delivery.attempt(self.patience, at_once=True, report=False)
        if error is not None and not _may_come_back(error):
            raise self._refusal(error, "run the stage again")
        self.delivery.report(error)
        return first

    def settle(self) -> str:
        """The run's id, with all that was logged there. Raises ConfigError if the server does not take it."""
        error = self.deliver()
        if error is not None or self.run is None:
            raise self._refusal(error or DataError("no run was begun"), "run `dvc repro register` again")
        return self.run

    def _refusal(self, error: Exception, command: str) -> ConfigError:
        where, reason = masked(self.uri), one_line(error)
        text = f"MLflow cannot be used at {where} ({reason}); start the server or correct MLFLOW_TRACKING_URI, and {command}"
        return ConfigError(text)


def _monitors() -> list[Any]:
    """What can be measured here: the GPU needs one, and nvidia-ml-py."""
    found = []
    for module, name in (("cpu", "CPU"), ("disk", "Disk"), ("network", "Network"), ("gpu", "GPU")):
        with contextlib.suppress(Exception):  # no psutil, no nvidia-ml-py, no driver, no permission
            room = importlib.import_module(f"mlflow.system_metrics.metrics.{module}_monitor")
            found.append(getattr(room, f"{name}Monitor")())
    return found


def _replay(uri: str, journal: Journal) -> None:
    """Send the entries that have not arrived, in order; what cannot be sent raises.

    An entry that arrives twice is there once: a point of a metric is its name, step, time and value, and a run is found
    by our tag. A run that the server does not know, or no longer, is made there from its first entry on.
    """
    with journal.sole_sender(), _short_waits():
        client = _connect(uri)
        run, sent = journal.position()
        if run is not None and not _is_there(client, run):
            run, sent = None, 0
        while waiting := journal.entries()[sent:]:
            for entry in waiting:
                run = _send(client, run, entry)
                sent += 1
                journal.note(run, sent)


def _send(client: MlflowClient, run: str | None, entry: Entry) -> str | None:
    """Send one entry to the run and return the run. One that MLflow will never take is left out, with a warning."""
    kind = entry.get("kind")
    if kind == "start":
        return _open_run(client, entry)
    try:
        if kind == "metrics":
            points = [Metric(k, v, entry["time"], entry["step"]) for k, v in entry["metrics"].items()]
            for part in _parts(points, 1000):
                client.log_batch(run, metrics=part)
        elif kind == "status" and entry["status"] == "RUNNING":
            client.update_run(run, "RUNNING")
        elif kind == "status":
            client.set_terminated(run, entry["status"], entry["time"])
            _drop_twins(client, run)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        logger.warning("MLflow takes no entry like %s (%s); it is in the journal only", str(entry)[:80], one_line(error))
    return run


def _open_run(client: MlflowClient, entry: Entry) -> str:
    """The run of a start entry: there already, if whoever made it was killed before it could note that."""
    experiment = _experiment(client, entry["experiment"])
    known = _find_runs(client, experiment, entry["key"])
    if known:
        run = max(known, key=lambda one: len(one.data.metrics)).info.run_id
    else:
        tags = entry["tags"] | {RUN_TAG: entry["key"]}
        run = client.create_run(experiment, entry["time"], tags, entry["name"]).info.run_id
    for part in _parts([Param(key, value) for key, value in entry["params"].items()], 100):
        client.log_batch(run, params=part)
    return run


def _find_runs(client: MlflowClient, experiment: str, key: str) -> list[Any]:
    return list(client.search_runs([experiment], f"tags.{RUN_TAG} = '{key}'"))


def _drop_twins(client: MlflowClient, run: str | None) -> None:
    """A server that was asked for a run, and made it after we had stopped to wait, has a second one that is empty."""
    own = client.get_run(run)
    for other in _find_runs(client, own.info.experiment_id, own.data.tags.get(RUN_TAG, "")):
        if other.info.run_id != run:
            client.delete_run(other.info.run_id)


def _is_there(client: MlflowClient, run: str) -> bool:
    try:
        return client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _experiment(client: MlflowClient, name: str) -> str:
    """The experiment's id; a new one keeps its artefacts beside the SQLite file, or where the server decides."""
    known = client.get_experiment_by_name(name)
    if known is None:
        file = _sqlite_file(client.tracking_uri)
        try:
            return client.create_experiment(name, file and (file.parent / "mlartifacts").resolve().as_uri())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.get_experiment_by_name(name)  # another training has made it just now
    if known.lifecycle_stage == "deleted":
        raise ConfigError(f"the experiment {name} is deleted; run `mlflow experiments restore -x {known.experiment_id}`")
    return known.experiment_id


_opened: dict[str, tuple[int, int]] = {}  # SQLite URI → the file that this process has open, and how often that was replaced


def _connect(uri: str) -> MlflowClient:
    """A client. Two processes that find no SQLite file would both make its tables: one at a time.

    MLflow would go on writing into a file that was removed; the same name spelt otherwise makes it open the new one.
    """
    file = _sqlite_file(uri)
    if file is None:
        if not uri.startswith("http"):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 1  # by itself ten, with pauses that add up to minutes
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known, times = _opened.get(uri, (0, 0))
        times += bool(known and known != _inode(file))
        client = MlflowClient(uri.replace(str(file), f"{file.parent}{'/.' * times}/{file.name}", 1))
        _opened[uri] = _inode(file), times
    return client


def _inode(file: Path) -> int:
    return file.stat().st_ino if file.exists() else 0


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///").split("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


@contextlib.contextmanager
def _short_waits() -> Iterator[None]:
    """MLflow gives up soon, and does not print the traces of what we report in a line."""
    ours = {name: value for name, value in SHORT_WAITS.items() if name not in os.environ}
    library = logging.getLogger("mlflow")
    level = library.level
    os.environ.update(ours)
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(level)
        for name in ours:
            os.environ.pop(name, None)


def _may_come_back(error: Exception) -> bool:
    """Whether a server is only away, and not misnamed, of another kind, or refusing us."""
    if re.search(LASTING, str(error)) or isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        return False
    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 499 or error.get_http_status_code() == 429
    return isinstance(error, OSError) or type(error).__module__.startswith("sqlalchemy")


def register(directory: Path, run_id: str, name: str, tags: dict[str, str], *, alias: str | None) -> int:
    """Log the checkpoint as a pyfunc model of the run, register it as `name`, and return the new version.

    Tags go on the version; `alias` is pointed at it. No face is stored: the input example is grey. Raises ConfigError if
    the server or its artefact store does not take it.
    """
    try:
        return _register(directory, run_id, name, tags, alias)
    except (MlflowException, OSError) as error:
        where, reason = masked(tracking_uri()), one_line(error)
        raise ConfigError(f"{name} was not registered at {where} ({reason}); run `dvc repro register` again") from error


def _register(directory: Path, run_id: str, name: str, tags: dict[str, str], alias: str | None) -> int:
    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_registry_uri(tracking_uri())
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


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _version() -> str:
    from aupipe import __version__

    return __version__
