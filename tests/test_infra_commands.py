"""The commands inside Dockerfile, compose.yaml and the RayJob, run as they are written but for ports and folders."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_infra import COMPOSE, INFRA, dockerfile, documents, replace
from test_jobs import PLAIN, ROOT, free_ports

from aupipe import assets
from aupipe.config import read_yaml

BIN = Path(sys.executable).parent
ENVIRONMENT = PLAIN | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run_shell(command: str, folder: Path, code: int = 0, **more: str) -> str:
    done = subprocess.run(
        ("sh", "-c", command), cwd=folder, env=ENVIRONMENT | more, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, f"{command}\n{done.stdout}"
    return done.stdout


@contextlib.contextmanager
def started(command: str, folder: Path, **more: str) -> Iterator[subprocess.Popen]:
    """A server of compose.yaml: the command as Docker would split it."""
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            shlex.split(command), cwd=folder, env=ENVIRONMENT | more, start_new_session=True, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def becomes_healthy(service: str, process: subprocess.Popen, folder: Path, ports: dict[str, str], **more: str) -> None:
    """Wait until the service's own healthcheck succeeds."""
    check = replace(COMPOSE["services"][service]["healthcheck"]["test"], ports)
    deadline = time.monotonic() + 120
    while subprocess.run(("sh", "-c", check), env=ENVIRONMENT | more, capture_output=True, timeout=60).returncode:
        assert process.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"{service} does not become healthy"
        time.sleep(0.3)


# Dockerfile


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Docker is sent, by .dockerignore, and the constraints that this environment is made by."""
    folder = tmp_path_factory.mktemp("context")
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        for source in ROOT.glob(line[1:]) if line.startswith("!") else ():
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    here = {d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()}
    pins = (folder / "constraints.txt").read_text(encoding="utf-8").split()
    known = [pin for pin in pins if pin.split("==")[0].lower().replace("_", "-") in here]
    assert {pin.split("==")[0] for pin in pins} - {pin.split("==")[0] for pin in known} <= {"nvidia-ml-py"}, "GPU only"
    (folder / "constraints.txt").write_text("\n".join(known) + "\n", encoding="utf-8")
    return folder


def shims(folder: Path, *names: str) -> Path:
    """Programs that write down how they were called: what changes the system is not done here."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_every_step_of_the_image_runs(context: Path, tmp_path: Path) -> None:
    """pip only looks whether the step would change this environment, without an index: all of it must be there already."""
    folder = shims(tmp_path / "shims", "apt-get", "rm", "useradd", "mkdir", "chown")
    assets.fetch()
    argument = next(rest for word, rest in dockerfile() if word == "ARG").split("=", 1)
    more = {
        "PIP_DRY_RUN": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "AUPIPE_ASSETS": str(assets.assets_folder()),
    }
    steps = list(dict.fromkeys(rest for word, rest in dockerfile() if word == "RUN"))
    for step in steps:
        system = step.startswith(("apt-get", "useradd"))
        path = {"PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"} if system else {}
        run_shell(step.replace("/tmp/", f"{tmp_path}/"), context, **more, **path, **{argument[0]: argument[1]})
    calls = (folder / "calls").read_text(encoding="utf-8").splitlines()
    assert "apt-get install -y --no-install-recommends git wget" in calls
    assert "chown -R aupipe:aupipe /aupipe" in calls
    assert len(steps) == 7


# compose.yaml


def test_mlflow_of_compose_serves_and_keeps_artefacts_in_the_store(tmp_path: Path) -> None:
    """SQLite in place of PostgreSQL, moto in place of SeaweedFS."""
    import boto3
    from moto.server import ThreadedMotoServer

    port, store = map(str, free_ports(2))
    service = COMPOSE["services"]["mlflow"]
    bucket = COMPOSE["services"]["s3"]["environment"]["S3_BUCKET"]
    endpoint = f"http://127.0.0.1:{store}"
    assert service["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")
    more = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # fmt: skip
    more = service["environment"] | more
    assert not [name for name, value in more.items() if "$" in value]
    command = replace(
        service["command"], {"0.0.0.0": "127.0.0.1", "--port 5000": f"--port {port}", "--workers 2": "--workers 1"}
    )
    server = ThreadedMotoServer("127.0.0.1", int(store), verbose=False)
    server.start()
    try:
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket=bucket)
        with started(command, tmp_path, **more) as process:
            becomes_healthy("mlflow", process, tmp_path, {"5000": port}, **more)
            base = f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/one/model.txt"
            inside = {"Host": "mlflow:5000"}
            urllib.request.urlopen(urllib.request.Request(base, b"weights", inside, method="PUT"), timeout=60).close()
            assert client.get_object(Bucket=bucket, Key="mlflow/one/model.txt")["Body"].read() == b"weights"
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(base, headers={"Host": "elsewhere.example"}), timeout=30)
            assert refused.value.code == 403
    finally:
        server.stop()


# KubeRay and DVC


def test_the_entrypoint_of_the_rayjob_reproduces_in_the_home_and_dvc_sends_it_away(context: Path, tmp_path: Path) -> None:
    """On a pipeline of one stage; `tests/test_jobs.py` runs the whole one."""
    image, home, remote = tmp_path / "image", tmp_path / "home", tmp_path / "remote"
    shutil.copytree(context / "infra", image / "infra")
    shutil.copytree(context / ".dvc", image / ".dvc")
    stage = "stages:\n  one:\n    cmd: echo made > out.txt\n    outs: [out.txt]\n"
    (image / "dvc.yaml").write_text(stage, encoding="utf-8")
    (job,) = documents("kuberay/job.yaml")
    workdir = next(rest for word, rest in dockerfile() if word == "WORKDIR")
    run_shell(replace(job["spec"]["entrypoint"], {workdir: str(image)}), tmp_path, AUPIPE_HOME=str(home))
    assert (home / "out.txt").read_text(encoding="utf-8") == "made\n"
    assert (home / "dvc.lock").is_file()

    example = (INFRA / "dvc.config.example").read_text(encoding="utf-8")
    url = next(line.split(" = ")[1] for line in example.splitlines() if "/mnt/shared" in line)
    with (home / ".dvc/config.local").open("a", encoding="utf-8") as file:
        file.write(example.replace(url, str(remote)))
    run_shell("dvc push -q -r disk", home)
    (home / "out.txt").unlink()
    shutil.rmtree(home / ".dvc/cache")
    run_shell("dvc pull -q -r disk", home)
    assert (home / "out.txt").read_text(encoding="utf-8") == "made\n"


def test_the_launcher_starts_ray_as_compose_does() -> None:
    """`ray stop` ends every Ray of a machine, and ends none here: the rest of the launcher's commands are compose's."""
    config = read_yaml(INFRA / "ray-cluster.yaml")
    services = COMPOSE["services"]
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert head.split()[1:5] == services["head"]["command"].split()[:4]
    assert worker.split()[1:] == replace(services["worker"]["command"], {"head:6379": "$RAY_HEAD_IP:6379"}).split()[:-1]
