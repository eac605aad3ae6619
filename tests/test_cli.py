"""The `aupipe` command: a CSV for a video, and for every slip one sentence and exit code 2."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import AUS, StubLandmarker
from test_predictor import save_random_model, write_video

from aupipe import cli, predictor


@pytest.fixture
def aupipe(tmp_path, monkeypatch, capsys):
    """Run the command in an empty working directory that holds a checkpoint; returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(predictor, "load_landmarker", lambda name: StubLandmarker())
    save_random_model(tmp_path / "checkpoint")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["aupipe", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        # Progress bars and lines are wrapped to the width of a terminal, and wrapping is no part of the message.
        return stop.value.code or 0, " ".join(capsys.readouterr().err.split())

    return run


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name not in ("checkpoint", "v.mp4"))


def test_video_becomes_a_csv(aupipe, tmp_path):
    write_video(tmp_path / "v.mp4", ["face", "black", "face"])
    code, message = aupipe("predict", "v.mp4", "-o", "out.csv", "--model", "checkpoint")
    assert code == 0
    assert "out.csv: 3 frames" in message
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["1", "2", "3"]
    assert set(AUS.probability_columns) | set(AUS.columns) < set(rows[0])


@pytest.mark.parametrize(
    ("video", "model", "sentence"),
    [
        ("absent.mp4", "checkpoint", "there is no video absent.mp4"),
        ("text.mp4", "checkpoint", "text.mp4 is not a video"),
        ("black.mp4", "checkpoint", "no face was found in any of the 2 frames"),
        ("black.mp4", "absent", "absent is no checkpoint"),
        ("black.mp4", None, "params.yaml does not exist here"),
    ],
)
def test_slip_is_one_sentence_exit_code_2_and_no_file(aupipe, tmp_path, video, model, sentence):
    (tmp_path / "text.mp4").write_text("this is no video")
    write_video(tmp_path / "black.mp4", ["black"] * 2)
    code, message = aupipe("predict", video, "-o", "out.csv", *(("--model", model) if model else ()))
    assert code == 2
    assert message.startswith("aupipe: ")
    assert sentence in message
    assert "Traceback" not in message
    assert leftovers(tmp_path) == ["black.mp4", "text.mp4"]


def test_existing_csv_survives_a_slip(aupipe, tmp_path):
    (tmp_path / "out.csv").write_text("of yesterday")
    write_video(tmp_path / "v.mp4", ["black"])
    assert aupipe("predict", "v.mp4", "-o", "out.csv", "--model", "checkpoint")[0] == 2
    assert (tmp_path / "out.csv").read_text() == "of yesterday"


def test_missing_output_is_refused(aupipe):
    code, message = aupipe("predict", "v.mp4")
    assert code == 2
    assert "--output" in message


def test_graph_of_a_checkpoint_is_drawn(aupipe, tmp_path):
    code, message = aupipe("graph", "checkpoint", "-o", "graph.svg")
    assert code == 0
    assert "graph.svg: the relation graph" in message
    assert "AU12" in (tmp_path / "graph.svg").read_text()
    code, message = aupipe("graph", "checkpoint", "-o", "graph.doc")
    assert code == 2
    assert "ends in .svg, .png, .pdf" in message
    assert leftovers(tmp_path) == ["graph.svg"]


def run(*arguments, **options):
    command = [sys.executable, "-c", "from aupipe.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_lists_the_commands_without_loading_a_framework():
    script = "import sys; from aupipe import cli; sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'mlflow', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    done = run("--help")
    assert done.returncode == 0
    assert "predict" in done.stdout
    assert "assets" in done.stdout


def test_slip_in_a_process_of_its_own_shows_no_traceback(tmp_path):
    done = run("predict", "absent.mp4", "-o", "out.csv", "--model", "absent", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    sentence = " ".join(done.stderr.split())
    assert sentence == "aupipe: absent is no checkpoint: it has no checkpoint.json; train one with `dvc repro`"
    assert list(tmp_path.iterdir()) == []
