"""The files of infra/: each parses, says what its reader expects, pins its images, opens nothing, holds no secret."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aupipe.config import read_yaml

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
COMPOSE = read_yaml(INFRA / "compose.yaml")
EXAMPLE = (INFRA / "env.example").read_text(encoding="utf-8")
TEXTS = sorted(p for p in INFRA.rglob("*") if p.is_file() and p.name != ".env" and "__pycache__" not in p.parts)
PINNED = re.compile(r"^[a-z0-9./_-]+:(cpu|gpu|v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)*)$")
VARIABLES = {"RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AUPIPE_RAW", "AUPIPE_STORAGE", "AUPIPE_ASSETS", "AUPIPE_HOME"}


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) of every line, continued ones joined."""
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def documents(name: str) -> list[dict]:
    return [d for d in yaml.safe_load_all((INFRA / name).read_text(encoding="utf-8")) if d]


def every_value(tree, key: str):
    """Every value under `key`, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from every_value(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from every_value(value, key)


def replace(command: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        assert old in command, f"{old} in {command}"
        command = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, command)
    return command


def reject_unknown(tree: dict, known: set[str], where: str) -> None:
    assert set(tree) <= known, f"{where}: {sorted(set(tree) - known)}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(INFRA)))
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b", text)
    for name, value in re.findall(
        r"(?im)^[#\s-]*(\w*(?:password|secret|token|access_key_id|access_key))[ \t]*[:=][ \t]*(\S*)$", text
    ):
        assert value in ("", "token") or value.startswith(("${", "$(", "/")), f"{name} has a value"


def test_images_are_pinned() -> None:
    images = [s["image"] for s in COMPOSE["services"].values()]
    images += [rest.split()[0] for word, rest in dockerfile() if word == "FROM" and rest.split()[0] not in ("base",)]
    images += list(every_value(documents("kuberay/job.yaml"), "image"))
    images += [read_yaml(INFRA / "ray-cluster.yaml")["docker"]["image"]]
    assert len(images) >= 10
    for image in images:
        assert PINNED.match(image), image


def test_versions_are_those_of_the_constraints() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    for name in ("kuberay/cluster.yaml", "kuberay/job.yaml"):
        assert set(every_value(documents(name), "rayVersion")) == {pins["ray"]}
    assert {"boto3", "psycopg2-binary", "torch", "mlflow", "dvc", "nvidia-ml-py"} <= set(pins)


# Docker


def test_the_image_has_two_targets_that_differ_in_torch_alone() -> None:
    stages: dict[str, list] = {}
    for word, rest in dockerfile():
        if word == "FROM":
            stages[rest.split()[-1]] = []
        else:
            stages[list(stages)[-1]].append((word, rest))
    assert list(stages) == ["base", "cpu", "gpu"]
    rest = {
        name: [s for s in stages[name] if " torch" not in s[1] and s[0] in ("RUN", "COPY", "USER")]
        for name in ("cpu", "gpu")
    }
    assert rest["cpu"] == rest["gpu"]
    assert rest["cpu"][-1] == ("USER", "aupipe"), "no image runs as root"


def test_the_build_gets_code_and_nothing_else() -> None:
    lines = [x for x in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if x and not x.startswith("#")]
    assert lines[0] == "*", "all is left out that is not named"
    for name in (line[1:] for line in lines if line.startswith("!") and "*" not in line):
        assert (ROOT / name).exists(), name
    for name in ("aupipe", "pipelines", "infra/job.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert f"!{name}" in lines, f"{name} is needed to install or to run"


def test_compose_is_sound() -> None:
    services = COMPOSE["services"]
    known = {"image", "build", "init", "restart", "shm_size", "environment", "volumes", "command", "ports", "healthcheck",
             "depends_on", "deploy", "profiles"}  # fmt: skip
    for name, service in services.items():
        reject_unknown(service, known, name)
        reject_unknown(service.get("healthcheck", {}), {"test", "interval", "timeout", "retries"}, f"{name}.healthcheck")
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] == "service_healthy"
            assert "healthcheck" in services[other], f"{name} waits for {other}, which says nothing of its health"
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).split(":")[0]
            assert source in COMPOSE["volumes"]
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["image"].endswith(":" + service["build"]["target"])
    assert {"head", "worker", "worker-gpu", "mlflow", "postgres", "s3"} == set(services)
    for service in ("head", "worker", "worker-gpu"):
        assert services[service]["environment"]["RAY_AUTH_MODE"] == "token"
    assert services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_compose_opens_ports_to_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8265:8265", "127.0.0.1:5000:5000", "127.0.0.1:8333:8333"]
    assert not any("network_mode" in service for service in COMPOSE["services"].values())


def test_compose_asks_for_nothing_that_the_example_lacks() -> None:
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    asked = dict(re.findall(r"\$\{(\w+)(:[-?])?", text))
    named = set(re.findall(r"(?m)^#?([A-Z_]+)=", EXAMPLE))
    assert set(asked) <= named
    assert {k for k, kind in asked.items() if kind == ":?"} == set(re.findall(r"(?m)^([A-Z_]+)=$", EXAMPLE)), (
        "secrets are empty"
    )
    assert named >= VARIABLES


def test_docker_reads_the_compose_file(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(("docker", "compose", "version"), capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    (tmp_path / ".env").write_text(re.sub(r"(?m)^([A-Z_]+)=$", r"\1=x", EXAMPLE), encoding="utf-8")
    command = (
        "docker",
        "compose",
        "-f",
        str(INFRA / "compose.yaml"),
        "--env-file",
        str(tmp_path / ".env"),
        "config",
        "--quiet",
    )
    subprocess.run(command, check=True)


def test_secrets_are_made_up_once_and_kept_to_oneself(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(INFRA / "env.example", tmp_path / "infra")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(Path(sys.executable).parent)
    made = tmp_path / "infra/.env"
    seen = []
    for _ in range(2):
        command = ("make", "-s", "-o", ".venv/bin/.installed", "env")
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        values = dict(line.split("=", 1) for line in made.read_text(encoding="utf-8").splitlines() if line[:1].isupper())
        seen.append(values)
    assert seen[0] == seen[1]
    secrets = [
        values[name] for name in ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    assert len(set(secrets)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48,64}", secret) for secret in secrets)
    assert secrets[0] == (tmp_path / ".ray/auth_token").read_text(encoding="utf-8").strip()
    assert made.stat().st_mode & 0o077 == 0
    assert "/infra/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


# KubeRay, of whose v1 API these are the fields that we may use.

CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
JOB = {
    "entrypoint",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "rayClusterSpec",
}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
POD = {"securityContext", "containers", "volumes"}
CONTAINER = {"name", "image", "ports", "env", "resources", "volumeMounts"}


def check_cluster(spec: dict) -> None:
    reject_unknown(spec, CLUSTER, "RayCluster")
    assert spec["authOptions"] == {"mode": "token"}
    reject_unknown(spec.get("autoscalerOptions", {}), {"version", "idleTimeoutSeconds"}, "autoscalerOptions")
    reject_unknown(spec["headGroupSpec"], {"rayStartParams", "template"}, "headGroupSpec")
    for group in spec["workerGroupSpecs"]:
        reject_unknown(group, GROUP, "workerGroupSpecs")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(v, str) for v in group["rayStartParams"].values()), "KubeRay wants strings"
        check_pod(group["template"]["spec"])


def check_pod(pod: dict) -> None:
    reject_unknown(pod, POD, "pod")
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    reject_unknown(container, CONTAINER, "container")
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    home = next(e["value"] for e in container["env"] if e["name"] == "AUPIPE_HOME")
    assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]}["home"] == home
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [d["metadata"]["name"] for d in documents("kuberay/home.yaml")]


def test_kuberay_cluster_and_job_are_sound() -> None:
    (cluster,), (job,) = documents("kuberay/cluster.yaml"), documents("kuberay/job.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_cluster(cluster["spec"])
    reject_unknown(job["spec"], JOB, "RayJob")
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode")
    check_cluster(job["spec"]["rayClusterSpec"])
    (claim,) = documents("kuberay/home.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "all nodes write to it"


def test_ray_itself_reads_the_kuberay_cluster() -> None:
    """What Ray's autoscaler makes of it: the groups with their resources."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    (cluster,) = documents("kuberay/cluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    types = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert {name: (t["resources"]["CPU"], t["resources"].get("GPU", 0)) for name, t in types.items()} == {
        "headgroup": (2, 0),
        "cpu": (8, 0),
        "gpu": (8, 1),
    }
    assert types["gpu"]["max_workers"] == 8


def test_the_network_policy_lets_in_ray_the_submitter_and_the_operator() -> None:
    (policy,) = documents("kuberay/network.yaml")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    nodes, others = policy["spec"]["ingress"]
    assert policy["spec"]["podSelector"] == nodes["from"][0]["podSelector"]
    assert others["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_kustomize_names_the_images() -> None:
    listed = read_yaml(INFRA / "kuberay/kustomization.yaml")
    assert all((INFRA / "kuberay" / name).is_file() for name in listed["resources"])
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(("kubectl", "kustomize", str(INFRA / "kuberay")), capture_output=True, text=True, check=True)
    made = [d for d in yaml.safe_load_all(done.stdout) if d]
    assert {d["kind"] for d in made} == {"PersistentVolumeClaim", "NetworkPolicy", "RayCluster"}
    assert set(every_value(made, "image")) == {"registry.example.com/aupipe:cpu", "registry.example.com/aupipe:gpu"}


# Ray's launcher


def test_ray_itself_reads_the_cluster_file() -> None:
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read_yaml(INFRA / "ray-cluster.yaml")
    jsonschema.validate(
        config, json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    )
    validate_config(prepare_config(json.loads(json.dumps(config))))
    for command in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert command[-1].startswith("RAY_AUTH_MODE=token ray start")
    assert "~/.ray/auth_token" in config["file_mounts"]


# README


def test_the_readme_stays_within_five_commands_and_names_what_is_there() -> None:
    text = (INFRA / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        assert len(block.strip().splitlines()) <= 5
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (INFRA / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z]+)(?= |\n|`)", text)):
        assert re.search(rf"(?m)^{target}:", makefile), f"make {target}"
