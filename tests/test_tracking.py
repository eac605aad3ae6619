"""tracking.py: runs that can be seen in MLflow, and registered models that predict in a process that knows nothing else."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import AUS, describe, make_recipe
from stral_models import settle
from test_predictor import save_random_model

from aupipe import tracking
from aupipe.checkpoint import save_checkpoint
from aupipe.journal import Delivery
from aupipe.landmarks import load_landmarker
from aupipe.predictor import AUPredictor
from aupipe.schema import ConfigError, DataError

NAME = tracking.model_name("demo", "small")
RECORD = {
    "epoch": 1,
    "phase": "train",
    "lr": 0.001,
    "train": {"loss": 0.5, "f1": None},
    "val": {"loss": 0.6, "f1": 0.25},
    "val_f1": {"AU01": 0.25, "AU04": None},
    "wait": 0.125,
    "timings": {"decode": 0.5},
    "seconds": 2.0,
}
# What a user of the registry runs: MLflow, a uint8 array, and the name of the model.
SCRIPT = """
import sys, numpy as np, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
faces = np.load(sys.argv[2])
np.savez(sys.argv[3], **model.predict(faces))
for wrong in (faces[:, :100], faces.astype(np.float32), faces[0]):
    try:
        model.predict(wrong)
    except mlflow.exceptions.MlflowException:
        print("refused")
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A working directory with MLflow's default database, in which a run was logged and its model registered."""
    folder = tmp_path_factory.mktemp("tracked")
    landmarker = {"name": "blazemesh", "fingerprint": load_landmarker("blazemesh").fingerprint}
    checkpoint = save_random_model(folder / "elsewhere" / "checkpoint", landmarker=landmarker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.Tracker, "patience", 300.0)  # a busy machine
        patch.setattr(Delivery, "patience", 300.0)
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        tracker = tracking.Tracker(folder, "first")
        tracker.start("demo", "small fold1", {"recipe": {"clip": {"frames": 2}}, "seed": 7}, {"git_commit": "abc"})
        tracker.watch()
        for epoch in (1, 2):
            tracker.epoch(RECORD | {"epoch": epoch})
        tracker.end()
        tracker.results({"f1": 0.5, "auc": None, "prior": {"f1": 0.25, "per_au": {"f1": [1, None]}}})
        run, uri = tracker.settle(), tracking.tracking_uri()
        version = tracking.register(checkpoint, run, NAME, {"fold": "fold1", "f1": "0.5"}, alias="candidate")
        client = tracking.MlflowClient(uri)
        yield SimpleNamespace(folder=folder, checkpoint=checkpoint, run=run, uri=uri, version=version, client=client)


def test_run_is_in_the_database_of_the_working_directory(tracked):
    assert tracked.uri == f"sqlite:///{tracked.folder / 'mlflow.db'}"
    assert (tracked.folder / "mlflow.db").is_file()
    run = tracked.client.get_run(tracked.run)
    assert run.info.run_name == "small fold1"
    assert run.info.status == "FINISHED"
    assert tracked.client.get_experiment(run.info.experiment_id).name == "aupipe-demo"
    assert run.data.params == {"recipe.clip.frames": "2", "seed": "7"}
    assert run.data.tags["git_commit"] == "abc"
    assert (tracked.folder / "mlartifacts").is_dir()


def test_every_figure_of_an_epoch_is_a_metric(tracked):
    metrics = tracked.client.get_run(tracked.run).data.metrics
    assert metrics["val.f1"] == metrics["val_f1.AU01"] == 0.25
    assert metrics["train.loss"] == 0.5
    assert "train.f1" not in metrics, "what is undefined is not logged"
    assert (metrics["wait"], metrics["timings.decode"]) == (0.125, 0.5)
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    history = tracked.client.get_metric_history(tracked.run, "val.loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.6), (2, 0.6)]
    assert {k: v for k, v in metrics.items() if k.startswith("test.")} == {"test.f1": 0.5, "test.prior.f1": 0.25}


def test_run_goes_on_where_it_was_begun_and_another_folder_is_another_run(tracked):
    tracker = tracking.Tracker(tracked.folder, "first")
    tracker.start("demo", "other", {}, {})
    assert tracker.run == tracked.run
    assert tracked.client.get_run(tracked.run).info.status == "RUNNING"
    tracker.end()
    assert tracked.client.get_run(tracked.run).info.status == "FINISHED"
    fresh = tracking.Tracker(tracked.folder, "fresh")
    fresh.start("demo", "other", {}, {})
    assert fresh.run != tracked.run
    assert tracked.client.get_run(fresh.run).info.run_name == "other"


def test_tracking_uri_of_the_environment_wins(tracked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    tracker = tracking.Tracker(tmp_path, "afar")
    tracker.start("demo", "from afar", {}, {})
    assert tracked.client.get_run(tracker.run).info.run_name == "from afar"
    assert [path.name for path in tmp_path.iterdir()] == ["tracking"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.tracking_uri() == "http://127.0.0.1:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mine.db", "workers have another working directory"


def test_registered_version_has_its_tags_alias_and_signature(tracked):
    assert tracked.version == 1
    version = tracked.client.get_model_version_by_alias(NAME, "candidate")
    assert (int(version.version), version.run_id) == (1, tracked.run)
    assert version.tags == {"fold": "fold1", "f1": "0.5"}
    signature = tracking.mlflow.models.get_model_info(f"models:/{NAME}@candidate").signature
    (faces,) = signature.inputs.inputs
    assert (faces.type, faces.shape) == (np.dtype(np.uint8), (-1, 112, 112, 3))
    assert [column.name for column in signature.outputs.inputs] == list(AUS.probability_columns)


def test_second_version_leaves_the_alias_where_it_is(tracked):
    assert tracking.register(tracked.checkpoint, tracked.run, NAME, {"fold": "fold2"}, alias=None) == 2
    assert int(tracked.client.get_model_version_by_alias(NAME, "candidate").version) == 1


def test_no_artefact_is_a_pickle_or_a_face(tracked):
    files = [path for path in (tracked.folder / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".jpg", ".png")]
    for path in files:
        assert not path.read_bytes().startswith((b"\x80\x04", b"\x80\x05", b"PK")), f"{path} is a pickle or an archive"
    examples = [path.read_text() for path in files if "input_example" in path.name]
    assert examples
    assert set(re.findall(r"\d+", "".join(examples))) == {"128"}, "the example is plain grey"


def test_registered_model_predicts_in_a_process_of_its_own(tracked, tmp_path):
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    np.save(tmp_path / "faces.npy", faces)
    arguments = [f"models:/{NAME}@candidate", str(tmp_path / "faces.npy"), str(tmp_path / "probs.npz")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracked.uri}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    probs = np.load(tmp_path / "probs.npz")
    expected = AUPredictor.load(tracked.checkpoint).predict_faces(faces)
    assert list(probs) == list(AUS.probability_columns)
    np.testing.assert_allclose(np.stack([probs[c] for c in AUS.probability_columns], 1), expected, atol=1e-6)
    assert probs["AU01_p"].dtype == np.float32
    assert done.stdout.split() == ["refused"] * 3


def test_predictor_is_loaded_by_name_alias_version_or_folder(tracked):
    faces = np.random.default_rng(1).integers(0, 256, (2, 112, 112, 3), np.uint8)
    expected = AUPredictor.load(tracked.checkpoint).predict_faces(faces)
    for uri in (f"models:/{NAME}@candidate", f"models:/{NAME}/1", str(tracked.checkpoint)):
        np.testing.assert_array_equal(tracking.load_predictor(uri).predict_faces(faces), expected)


def test_registered_temporal_model_reads_its_faces_as_one_sequence(tracked):
    landmarker = {"name": "blazemesh", "fingerprint": load_landmarker("blazemesh").fingerprint}
    torch.manual_seed(0)
    description = describe(make_recipe(model={"name": "stral", "c": 1}), landmarker=landmarker)
    model = settle(description.new_model())
    save_checkpoint(tracked.folder / "stral", model, description)
    name = tracking.model_name("demo", "stral")
    tracking.register(tracked.folder / "stral", tracked.run, name, {}, alias="candidate")
    registered = tracking.mlflow.pyfunc.load_model(f"models:/{name}@candidate")
    faces = np.random.default_rng(0).integers(0, 256, (90, 112, 112, 3), np.uint8)
    probs = registered.predict(faces)
    assert list(probs) == list(AUS.probability_columns)
    frames = torch.from_numpy(faces[:, 24:88, 24:88]).permute(0, 3, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        expected = model(frames).logits_BTM[0].sigmoid().numpy()
    np.testing.assert_allclose(np.stack(list(probs.values()), 1), expected, atol=1e-5)
    alone = np.stack([registered.predict(face[None])["AU01_p"][0] for face in faces[:5]])
    assert np.abs(alone - probs["AU01_p"][:5]).max() > 1e-3, "a face alone is another sequence"


@pytest.mark.parametrize(
    "uri", ["models:/aupipe-no-such@candidate", f"models:/{NAME}@champion", f"models:/{NAME}/99", "models:/"]
)
def test_unknown_model_is_one_sentence(tracked, uri):
    with pytest.raises(ConfigError, match=r"is not in the registry.*dvc repro") as caught:
        tracking.load_predictor(uri)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is no checkpoint"):
        tracking.load_predictor(str(tracked.folder / "absent"))


def test_lineage_is_the_hashes_of_what_is_up_to_date(tmp_path):
    lock = tmp_path / "dvc.lock"
    lock.write_text("stages:\n  folds:\n    outs:\n    - {path: data/folds/demo.json, md5: abc}\n  report: {cmd: x}\n")
    tags = tracking.lineage(lock)
    assert tags["dvc/data/folds/demo.json"] == "abc"
    assert not [key for key in tracking.lineage(tmp_path / "absent") if key.startswith("dvc/")]


def test_headline_figures_are_tags_where_they_are_defined():
    figures = {"f1": 0.51239, "auc": None, "accuracy": 1.0, "aus": [1, 4, 12], "frames": 3}
    assert tracking.figures_as_tags(figures) == {"f1": "0.5124", "accuracy": "1.0000", "aus": "1 4 12"}
    assert NAME == "aupipe-demo-small"


def test_two_trainings_may_be_the_first_at_once(tmp_path):
    """Both find no database, and each would make its tables."""
    code = (
        "import sys, pathlib; from aupipe import tracking; tracker = tracking.Tracker(pathlib.Path(), sys.argv[1]);"
        "tracker.begin('demo', 'run', {'seed': 1}, {}); assert tracker.deliver(500) is None; print(tracker.run)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(n)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    runs = [process.communicate(timeout=500)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(runs)) == 2
