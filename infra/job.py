"""The entry of a Ray job: the code that was sent goes into $AUPIPE_HOME, and the command runs there.

    ray job submit --working-dir . -- python infra/job.py 'dvc repro'

What Ray unpacks for a job is thrown away with it and is another folder on every node. AUPIPE_HOME is a folder that all nodes
see under the same path: code comes with each job; data, runs, results, dvc.lock and DVC's cache stay. Jobs of the same code
run side by side; one of other code waits until they have ended. A home that is a git checkout is never written over: its
code must be what was sent. Needs nothing but Python, and DVC the first time.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

SENT = Path(__file__).resolve().parents[1]
FOLDERS = ("aupipe", "pipelines", "benchmarks", "infra")
LOCK = "dvc.lock"  # says what lies in the home, so only the first job brings one
IGNORED = shutil.ignore_patterns("__pycache__")


def main() -> None:
    if len(sys.argv) != 2:
        _refuse("give one command, as in: python infra/job.py 'dvc repro'")
    if not (named := os.environ.get("AUPIPE_HOME")):
        _refuse("AUPIPE_HOME is not set on the cluster; set it to a folder that all nodes share, where the head is started")
    home = Path(named).resolve()
    home.mkdir(parents=True, exist_ok=True)
    _enter(home)
    os.chdir(home)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, for what reserves no CPU: a stage would work on one core
    os.execvp("sh", ["sh", "-c", sys.argv[1]])


def _enter(home: Path) -> None:
    """Bring the code, and keep others from changing it: the lock goes over to the command and ends with it."""
    lock = os.open(home / ".job.lock", os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_SH)
    # Between the two kinds of lock another job may come in, with code of its own.
    while (other := _find_difference(home)) is not None:
        if (home / ".git").exists():
            _refuse(
                f"{home} is a git checkout, and its {other} is not what was sent; make both the same or choose another home"
            )
        _wait_alone(lock, home)
        _bring(home)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _wait_alone(lock: int, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"aupipe: waiting for the jobs of other code in {home} to end", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _files() -> list[Path]:
    """What is sent, but for folders of code: params, stages, DVC's settings."""
    return [p.relative_to(SENT) for p in (*SENT.glob("*.yaml"), SENT / ".dvcignore", SENT / ".dvc/config") if p.is_file()]


def _find_difference(home: Path) -> str | None:
    """The first file of the code in `home` that is not as it was sent."""
    if home == SENT:
        return None
    for folder in FOLDERS:
        sent, there = ({p.relative_to(root) for p in (root / folder).rglob("*.py")} for root in (SENT, home))
        if sent ^ there:
            return str(min(sent ^ there))
    paths = [p.relative_to(SENT) for f in FOLDERS for p in (SENT / f).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    changed = [p for p in (*paths, *_files()) if not _same(SENT / p, home / p)]
    return str(min(changed)) if changed else None


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _bring(home: Path) -> None:
    for folder in FOLDERS:
        shutil.rmtree(home / folder, ignore_errors=True)
        if (SENT / folder).is_dir():
            shutil.copytree(SENT / folder, home / folder, ignore=IGNORED)
    for path in _files():
        (home / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(SENT / path, home / path)
    if (SENT / LOCK).is_file() and not (home / LOCK).exists():
        shutil.copyfile(SENT / LOCK, home / LOCK)
    local = home / ".dvc" / "config.local"  # DVC wants to know that no git is there
    if not (home / ".git").exists() and "no_scm" not in (local.read_text(encoding="utf-8") if local.exists() else ""):
        subprocess.run((sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"), cwd=home, check=True)


def _refuse(sentence: str) -> NoReturn:
    print(f"aupipe: {sentence}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
