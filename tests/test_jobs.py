"""Ray jobs: what is sent, where it runs, what comes back; against a real head with a token, started and stopped here."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from test_infra import COMPOSE, replace

from aupipe import assets
from aupipe.schema import read_json

ROOT = Path(__file__).parents[1]
CORPUS, RECIPE = "synthetic-bp4d", "attention_cnn-relative-demo"
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("AUPIPE_", "MLFLOW_", "RAY_", "MAKE", "PYTHONPATH"))}
WAIT = 550  # seconds, after which something hangs


def wait_until(true, what: str, seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


# The entry of a job, without Ray: a tree with some code is sent, and a home receives it.


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    folder = tmp_path / "sent"
    for name, text in {
        "aupipe/facs.py": "one",
        "pipelines/train.py": "one",
        "params.yaml": "seed: 1",
        "dvc.lock": "of the sender",
        ".dvc/config": "[core]\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "infra").mkdir()
    shutil.copy(ROOT / "infra/job.py", folder / "infra/job.py")
    return folder


def enter(sent: Path, home: Path | None, command: str) -> subprocess.Popen[str]:
    environment = PLAIN | ({} if home is None else {"AUPIPE_HOME": str(home)})
    call = (sys.executable, "infra/job.py", command)
    return subprocess.Popen(call, cwd=sent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_entry(sent: Path, home: Path | None, command: str, code: int = 0) -> tuple[str, str]:
    process = enter(sent, home, command)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return output, errors


def test_code_comes_with_each_job_and_everything_else_stays(sent: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    output, _ = run_entry(sent, home, "pwd; cat aupipe/facs.py; mkdir data; echo kept > data/file; echo ours > dvc.lock")
    assert output == f"{home}\none"
    settings = home / ".dvc/config.local"
    assert "no_scm = true" in settings.read_text(encoding="utf-8")
    (sent / "aupipe/facs.py").write_text("two", encoding="utf-8")
    (sent / "aupipe/new.py").write_text("", encoding="utf-8")
    (sent / "pipelines/train.py").rename(sent / "pipelines/fit.py")
    output, _ = run_entry(sent, home, "cat aupipe/facs.py data/file dvc.lock; ls aupipe pipelines")
    assert output.split() == ["twokept", "ours", "aupipe:", "facs.py", "new.py", "pipelines:", "fit.py"]
    assert settings.read_text(encoding="utf-8").count("no_scm") == 1


def test_the_exit_code_of_the_command_is_that_of_the_job(sent: Path, tmp_path: Path) -> None:
    run_entry(sent, tmp_path / "home", "exit 3", code=3)


def test_a_cluster_without_a_home_is_told(sent: Path) -> None:
    _, errors = run_entry(sent, None, "echo never", code=2)
    assert errors.startswith("aupipe: AUPIPE_HOME is not set")


def test_a_checkout_is_never_written_over(sent: Path, tmp_path: Path) -> None:
    home = tmp_path / "checkout"
    shutil.copytree(sent, home)
    (home / ".git").mkdir()
    (home / "dvc.lock").write_text("of the checkout", encoding="utf-8")
    assert run_entry(sent, home, "cat dvc.lock")[0] == "of the checkout"
    (home / "params.yaml").write_text("seed: 2", encoding="utf-8")
    _, errors = run_entry(sent, home, "echo never", code=2)
    assert "params.yaml is not what was sent" in errors
    assert (home / "params.yaml").read_text(encoding="utf-8") == "seed: 2"


def test_jobs_of_the_same_code_run_at_once_and_one_of_other_code_waits(sent: Path, tmp_path: Path) -> None:
    home, go = tmp_path / "home", tmp_path / "go"
    hold = f"touch {tmp_path}/begun; while [ ! -e {go} ]; do sleep 0.05; done; cat aupipe/facs.py"
    first = enter(sent, home, hold)
    try:
        wait_until((tmp_path / "begun").exists, "the first job")
        assert run_entry(sent, home, "cat aupipe/facs.py")[0] == "one"
        other = tmp_path / "other"
        shutil.copytree(sent, other)
        (other / "aupipe/facs.py").write_text("two", encoding="utf-8")
        last = enter(other, home, "cat aupipe/facs.py")
        assert last.stderr.readline().startswith("aupipe: waiting for the jobs of other code")
        assert last.poll() is None
        go.touch()
        assert first.communicate(timeout=60)[0] == "one"
        assert last.communicate(timeout=60)[0] == "two"
    finally:
        go.touch()
        first.wait(60)


# With Ray.


@dataclass
class Cluster:
    """A checkout from which jobs are sent, the home in which they run, and the head between them: its address and port."""

    checkout: Path
    home: Path
    address: str
    port: str
    scratch: Path
    environment: dict[str, str]

    def submit(self, command: str, code: int = 0, **more: str) -> str:
        """What `make submit` prints."""
        done = subprocess.run(
            ("make", "-s", "-o", ".venv/bin/.installed", "submit", "CMD=" + command.replace("$", "$$")),
            cwd=self.checkout, env=self.environment | more, text=True, timeout=WAIT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert bool(done.returncode) == bool(code), done.stdout
        return done.stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def make_checkout(folder: Path) -> Path:
    """A checkout with small params, its environment this one, and much that must not be sent."""
    for name in ("aupipe", "pipelines", "infra", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".rayignore", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)
    for name in (
        ".dvc/cache/files/00/11",
        "data/raw/bp4d/F001.jpg",
        "runs/x/model.safetensors",
        ".git/objects/ab",
        "clip.mp4",
        "infra/.env",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["corpora"][CORPUS]["synthetic"] |= {"subjects": 6, "sessions": 1, "seconds": 3, "fps": 4}
    params["recipes"][RECIPE]["phases"][0] |= {"epochs": 1, "batch": 4}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assets.fetch()
    folder = tmp_path_factory.mktemp("jobs")
    checkout, home, token = make_checkout(folder / "checkout"), folder / "home", folder / "token"
    token.write_text("0123456789abcdef" * 4, encoding="utf-8")
    scratch = Path(tempfile.mkdtemp(prefix="aupipe"))  # sockets lie below it, and their paths may have 107 letters
    port, dashboard, client, metrics, *agent = map(str, free_ports(7))
    settings = COMPOSE["services"]["head"]["environment"]["RAY_AUTH_MODE"]
    environment = PLAIN | {"RAY_AUTH_MODE": settings, "RAY_AUTH_TOKEN_PATH": str(token)}
    # Whoever starts Ray without an address joins the head that is named below RAY_TMPDIR.
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "RAY_TMPDIR": str(scratch)}
    more = {"AUPIPE_HOME": str(home), "AUPIPE_ASSETS": str(assets.assets_folder()), "AUTOSCALER_METRIC_PORT": metrics}
    command = replace(COMPOSE["services"]["head"]["command"], {"6379": port, "8265": dashboard, "0.0.0.0": "127.0.0.1"})
    command += f" --ray-client-server-port={client} --num-cpus=2" + of_this_machine(agent, scratch)
    address = f"http://127.0.0.1:{dashboard}"
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            shlex.split(command), cwd=folder, env=environment | more, start_new_session=True, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: head.poll() is not None or answers(address), "the head", 120)
        assert head.poll() is None, (folder / "head.log").read_text(encoding="utf-8")
        yield Cluster(checkout, home, address, port, scratch, environment | {"RAY_API_SERVER_ADDRESS": address})
    finally:
        stop(head, scratch)


def of_this_machine(ports: list[str], scratch: Path) -> str:
    """Flags by which a node shares a machine with others."""
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    flags = "".join(f" --{name}={port}" for name, port in zip(names, ports, strict=True))
    return f" --object-store-memory=200000000 --temp-dir={scratch}{flags}"


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def stop(head: subprocess.Popen, scratch: Path) -> None:
    """End the head's own processes, and wait for its workers, which end when it is gone."""
    end(head)
    for number in of_session(scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    wait_until(lambda: not of_session(scratch), "the end of the head's processes", 60)
    shutil.rmtree(scratch, ignore_errors=True)


def end(node: subprocess.Popen) -> None:
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 60)):  # Ray is patient with workers that are at work
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(node.pid, number)
            node.wait(patience)


def of_session(scratch: Path) -> list[int]:
    """Processes that name the session's own folder in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(scratch).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def repro(cluster: Cluster) -> str:
    return cluster.submit("dvc repro")


def test_the_whole_pipeline_runs_as_a_job(cluster: Cluster, repro: str) -> None:
    run = read_json(cluster.home / f"runs/{CORPUS}/{RECIPE}/fold1/run.json", "run")
    assert run["finished"]
    assert f"registered aupipe-{CORPUS}-{RECIPE} version 1" in repro, "the log comes as it is written"
    assert (cluster.home / f"reports/{CORPUS}/report.md").is_file()
    assert (cluster.home / f"data/raw/{CORPUS}/AUCoding/AU_OCC/F001_T1.csv").is_file(), (
        "rendered by tasks, whose folder is another"
    )
    assert not (cluster.checkout / "results").exists(), "nothing is made where the job was sent from"


def test_one_stage_runs_as_a_job(cluster: Cluster, repro: str) -> None:
    cluster.submit(f"python -m pipelines.train --recipe {RECIPE} --corpus {CORPUS} --fold fold2 --local")
    run = cluster.home / f"runs/{CORPUS}/{RECIPE}/fold2"
    assert read_json(run / "run.json", "run")["finished"]
    assert (run / "checkpoint").is_dir()


def test_what_is_sent_is_small_and_a_failing_stage_ends_with_its_sentence(cluster: Cluster) -> None:
    output = cluster.submit(
        'find "${PYTHONPATH%%:*}" -type f -printf "sent %s %P\\n"; python -m pipelines.recipe --recipe nonsuch', code=1
    )
    sizes = {line.split()[2]: int(line.split()[1]) for line in output.splitlines() if line.startswith("sent ")}
    sent = {name for name in sizes if not name.startswith(("aupipe/", "pipelines/"))}
    assert sent == {"infra/job.py", "params.yaml", "dvc.yaml", ".dvcignore", ".dvc/config"}
    assert {"aupipe/facs.py", "aupipe/datasets/bp4d.py", "aupipe/inspection.html", "pipelines/train.py"} <= set(sizes)
    assert sum(sizes.values()) < 3_000_000
    last = [line for line in output.splitlines() if line.strip() and not line.startswith("make:")][-1]
    assert last.startswith("aupipe: unknown recipe 'nonsuch'")


def test_nobody_submits_without_the_token(cluster: Cluster, tmp_path: Path) -> None:
    output = cluster.submit("echo never", code=1, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="", HOME=str(tmp_path))
    assert "Missing authentication token" in output
    for token in (None, "0" * 64):
        headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        request = urllib.request.Request(cluster.address + "/api/jobs/", b'{"entrypoint": "true"}', headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == (401 if token is None else 403)


def test_the_worker_of_compose_joins_and_the_head_is_healthy(cluster: Cluster, tmp_path: Path) -> None:
    services = COMPOSE["services"]
    check = replace(services["head"]["healthcheck"]["test"], {"6379": cluster.port})
    assert subprocess.run(shlex.split(check), env=cluster.environment, timeout=120).returncode == 0
    command = replace(services["worker"]["command"], {"head:6379": f"127.0.0.1:{cluster.port}"})
    command += " --num-cpus=1" + of_this_machine(list(map(str, free_ports(3))), cluster.scratch)
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            shlex.split(command), env=cluster.environment, start_new_session=True, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: worker.poll() is not None or count_nodes(cluster) == 2, "the worker", 120)
        assert worker.poll() is None, (tmp_path / "worker.log").read_text(encoding="utf-8")
    finally:
        end(worker)


def count_nodes(cluster: Cluster) -> int:
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    request = urllib.request.Request(f"{cluster.address}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return sum(node["raylet"].get("state") == "ALIVE" for node in json.load(answer)["data"]["summary"])


def test_make_head_starts_a_head_that_wants_its_token(cluster: Cluster) -> None:
    """By what it would run: the head of these tests is compose's."""
    command = ("make", "-n", "-o", "setup", "head", "FLAGS=--port=1")
    said = subprocess.run(command, cwd=cluster.checkout, env=PLAIN, text=True, capture_output=True, check=True).stdout
    assert (
        f'AUPIPE_HOME="${{AUPIPE_HOME:-{cluster.checkout}}}" ray start --head --block --disable-usage-stats --port=1' in said
    )
    variables = subprocess.run((*command, "-p"), cwd=cluster.checkout, env=PLAIN, text=True, capture_output=True).stdout
    assert "RAY_AUTH_MODE = token" in variables
