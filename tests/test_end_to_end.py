"""All stages on a small corpus, as a user runs them: `dvc repro`, killed and run again, then the registered model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from aupipe import assets

ROOT = Path(__file__).parents[1]
CORPUS, RECIPE = "synthetic-bp4d", "attention_cnn-relative-demo"
RUN = Path("runs") / CORPUS / RECIPE / "fold1"
SHARDS = Path("data/shards") / CORPUS


class House:
    """A checkout of its own with small params, in which stages run as processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("aupipe", "pipelines"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, root / name)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["corpora"][CORPUS]["synthetic"] |= {"subjects": 6, "sessions": 2, "seconds": 3, "fps": 4}
        params["recipes"][RECIPE]["phases"][0] |= {"epochs": 2, "batch": 8}
        self.write_params(params)
        self.run("dvc", "init", "-q", "--no-scm")

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUPIPE_", "MLFLOW_", "RAY_ADDRESS"))}
        kept = {"AUPIPE_ASSETS": str(assets.assets_folder())}
        return clean | kept | {"PATH": path, "PYTHONPATH": str(self.root), "DVC_NO_ANALYTICS": "1"}

    def params(self) -> dict:
        return yaml.safe_load((self.root / "params.yaml").read_text(encoding="utf-8"))

    def write_params(self, params: dict) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    def run(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def door(self, name: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", f"pipelines.{name}", *more, code=code)

    def kill_when(self, ready: Callable[[], bool], *command: str) -> None:
        """Start a command and SIGKILL it with all its children as soon as `ready`."""
        process = subprocess.Popen(
            command, cwd=self.root, env=self.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def changed(self) -> set[str]:
        """The kinds of stages that `dvc status` calls changed, leaving out the always checked ones."""
        status = json.loads(self.run("dvc", "status", "--json").stdout)
        return {name.split("@")[0] for name, causes in status.items() if causes != ["always changed"]}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    assets.fetch()
    house = House(tmp_path_factory.mktemp("house"))
    house.run("dvc", "repro")
    return house


def test_one_command_ends_with_a_report_and_a_registered_model(house: House) -> None:
    made = json.loads((house.root / f"data/registered/{CORPUS}/{RECIPE}/fold1.json").read_text(encoding="utf-8"))
    assert made["model"] == f"aupipe-{CORPUS}-{RECIPE}"
    report = (house.root / f"reports/{CORPUS}/report.md").read_text(encoding="utf-8")
    assert "| 12 | lip corner puller |" in report
    figures = json.loads((house.root / f"results/{CORPUS}/{RECIPE}/fold1/metrics.json").read_text(encoding="utf-8"))
    assert figures["frames"] + figures["frames_without_face"] > 0
    predictions = pq.read_table(house.root / f"results/{CORPUS}/{RECIPE}/fold1/predictions.parquet")
    folds = json.loads((house.root / f"data/folds/{CORPUS}.json").read_text(encoding="utf-8"))["folds"]
    assert set(predictions["subject"].to_pylist()) == set(folds[0]["test"])
    assert not set(folds[0]["test"]) & set(folds[0]["train"] + folds[0]["val"])


def test_labels_in_the_shards_are_those_of_the_corpus(house: House) -> None:
    manifest = pq.read_table(house.root / f"data/manifest/{CORPUS}.parquet")
    shard = pq.read_table(house.root / SHARDS / "F001" / "T1.parquet")
    csv = (house.root / f"data/raw/{CORPUS}/AUCoding/AU_OCC/F001_T1.csv").read_text(encoding="utf-8").splitlines()
    truth = {int(cells[0]): int(cells[12]) for cells in (line.split(",") for line in csv[1:])}
    for frame, label in zip(shard["frame"].to_pylist(), shard["AU12_c"].to_pylist(), strict=True):
        assert label == (None if truth.get(frame, 9) == 9 else truth[frame])
    shards = [pq.read_table(p) for p in sorted((house.root / SHARDS).rglob("*.parquet"))]
    assert sum(s.num_rows for s in shards) == manifest.num_rows


def test_a_second_run_only_looks(house: House) -> None:
    before = (house.root / "dvc.lock").read_bytes()
    output = house.run("dvc", "repro").stdout
    ran = {line.split("'")[1].split("@")[0] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"recipe", "synthesize", "inventory"}
    assert (house.root / "dvc.lock").read_bytes() == before


def test_metrics_and_plots_can_be_shown(house: House) -> None:
    assert "all_positive.f1" in house.run("dvc", "metrics", "show").stdout
    house.run("dvc", "plots", "show")
    page = (house.root / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "AU12" in page
    assert "val_f1" in page


def test_a_base_recipe_reaches_its_variants_and_nothing_else(house: House) -> None:
    params = house.params()
    changed = house.params()
    changed["recipes"]["attention_cnn"]["model"]["width"] = 64
    try:
        house.write_params(changed)
        house.door("recipe", "--recipe", RECIPE)
        assert house.changed() == {"recipe", "train", "evaluate"}
    finally:
        house.write_params(params)
        house.door("recipe", "--recipe", RECIPE)
    assert house.changed() == set()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("aupipe/align.py", {"shards"}),
        ("aupipe/datasets/bp4d.py", {"manifest", "folds"}),
        ("aupipe/losses.py", {"train"}),
        ("aupipe/report.py", {"report"}),
        ("aupipe/cli.py", set()),
    ],
)
def test_a_library_file_reruns_the_stages_that_use_it(house: House, file: str, stages: set[str]) -> None:
    path = house.root / file
    original = path.read_bytes()
    try:
        path.write_bytes(original + b"\n# changed\n")
        assert house.changed() == stages
    finally:
        path.write_bytes(original)


def test_shards_killed_half_way_end_with_the_same_bytes(house: House) -> None:
    shards = house.root / SHARDS
    whole = digests(shards)
    assert len(whole) == 12
    shutil.rmtree(shards)
    command = (sys.executable, "-m", "pipelines.shards", "--corpus", CORPUS)
    house.kill_when(lambda: len(list(shards.rglob("*.key"))) >= 3, *command)
    assert not (shards / "index.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in shards.rglob("*.parquet") if p.with_suffix(".key").exists()}
    house.door("shards", "--corpus", CORPUS)
    assert digests(shards) == whole
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), "finished sessions are kept, not made again"
    assert house.changed() == set()


def test_a_training_killed_half_way_ends_finished(house: House) -> None:
    run = house.root / RUN
    history = json.loads((run / "run.json").read_text(encoding="utf-8"))["history"]
    shutil.rmtree(run)
    command = (sys.executable, "-m", "pipelines.train", "--recipe", RECIPE, "--corpus", CORPUS, "--fold", "fold1")
    house.kill_when((run / "last" / "state.json").exists, *command)
    first = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert not first.get("finished")
    output = house.run(*command)
    assert "going on after epoch" in output.stderr + output.stdout
    again = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert again["finished"]
    assert again["mlflow_run"] == first["mlflow_run"]
    assert [r["epoch"] for r in again["history"]] == [1, 2]
    assert again["history"][-1]["val"]["f1"] == pytest.approx(history[-1]["val"]["f1"], abs=0.02)


def test_the_command_reads_a_video_with_the_registered_model(house: House, tmp_path: Path) -> None:
    video = tmp_path / "face.mp4"
    write_video(sorted((house.root / f"data/raw/{CORPUS}/Sequences/F001/T1").glob("*.jpg")), video)
    house.run("aupipe", "predict", str(video), "-o", str(tmp_path / "out.csv"))
    table = pacsv.read_csv(tmp_path / "out.csv")
    assert table.num_rows == 13
    assert table["frame"].to_pylist() == list(range(1, 14))
    assert sum(table["success"].to_pylist()) >= 12
    assert all(0 <= p <= 1 for p in table["AU12_p"].drop_null().to_pylist())


def write_video(frames: list[Path], path: Path) -> None:
    import av

    from aupipe.images import read_image

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        first = read_image(frames[0])
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *first.shape[:2], "yuv420p", 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(read_image(frame), format="rgb24")))
        container.mux(stream.encode(None))


def test_bad_input_is_one_sentence_and_exit_code_2(house: House, tmp_path: Path) -> None:
    before = house.changed()
    raw = house.root / "data/raw" / CORPUS
    cases = [
        (("inventory", "--corpus", "bp4d"), "AUPIPE_RAW"),
        (("manifest", "--corpus", "bp4d"), "AUPIPE_RAW"),
        (("recipe", "--recipe", "attention_cn"), "did you mean 'attention_cnn'?"),
        (("recipe", "--recipe", RECIPE, "--set", "recipes.attention_cnn.modle.name=x"), "did you mean 'model'?"),
        (("recipe", "--recipe", RECIPE, "--set", "recipes.attention_cnn.input.crop=big"), "expected int"),
        (("folds", "--corpus", CORPUS, "--set", f"corpora.{CORPUS}.aus=[1, 99]"), "unknown AU 99"),
        (("train", "--recipe", RECIPE, "--corpus", CORPUS, "--fold", "fold9"), "unknown fold 'fold9'"),
    ]
    for arguments, words in cases:
        check_refusal(house.door(*arguments, code=2), words)
    assert not (house.root / "data/inventory/bp4d.parquet").exists()
    labels = raw / "AUCoding/AU_OCC/F001_T9.csv"
    shutil.copy(raw / "AUCoding/AU_OCC/F001_T1.csv", labels)
    try:
        check_refusal(house.door("manifest", "--corpus", CORPUS, "--strict", code=2), "F001/T9")
    finally:
        labels.unlink()
    assert house.changed() == before


def check_refusal(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("aupipe: ")
