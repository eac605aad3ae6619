"""A Ray cluster of several nodes on this machine, each a `ray start` with processes of its own that can be killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PATIENCE = 400  # seconds until something counts as hung; a busy machine needs a fraction of it


class Node:
    """The processes of one `ray start --block`, which are a process group: raylet, agents and, below the raylet, workers."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def wait(self) -> Node:
        until(lambda: b"Ray runtime started" in self.log.read_bytes() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    @property
    def raylet(self) -> int:
        (pid,) = (pid for pid, name in processes(self.process.pid) if name.startswith("raylet"))
        return pid

    def workers(self) -> list[tuple[int, str]]:
        """(pid, name) of the processes that run tasks and actors, as `ray::_read`; idle ones are left out."""
        return [
            (pid, name)
            for pid, name in processes(self.process.pid)
            if name.startswith("ray::") and not re.match(r"ray::(IDLE|\w*Agent)", name)
        ]

    def kill(self) -> None:
        """The machine fails: every process at once."""
        members = [pid for pid, _ in processes(self.process.pid)]
        for pid in [self.process.pid, *members]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until(lambda: not any(is_alive(pid) for pid in members))


class Nodes:
    """Starts the head, whose CPUs are `cpus`; `add` starts more nodes. Ends all at the end of its block."""

    def __init__(self, cpus: int) -> None:
        # Sockets lie in it, whose paths may have 107 characters; the file that names the running cluster too, so that no
        # other Ray of this machine takes ours for its own.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.nodes: list[Node] = []
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.port, self.cpus = free_port(), cpus
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a driver gives up a head that is gone; 60 by default
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        self.start_head()

    def start_head(self) -> None:
        """Start the head, at the first time or after `kill`; it always has the same address."""
        options = [f"--port={self.port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        self._start("--head", *options, cpus=self.cpus)

    def add(self, cpus: int) -> Node:
        return self._start(f"--address=127.0.0.1:{self.port}", cpus=cpus)

    def kill(self) -> None:
        """Everything fails: all nodes and all drivers."""
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        for node in reversed(self.nodes):
            node.kill()
        self.drivers, self.nodes = [], []

    def workers(self) -> list[tuple[int, str]]:
        """(pid, name) of the processes of all nodes that run tasks and actors, in the order of their names."""
        return sorted((one for node in self.nodes for one in node.workers()), key=lambda one: (one[1], one[0]))

    def _start(self, *arguments: str, cpus: int) -> Node:
        ray = str(Path(sys.executable).with_name("ray"))
        common = ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 << 20}", f"--num-cpus={cpus}"]
        common += [f"--dashboard-agent-listen-port={free_port()}", "--block"]
        log = self.folder / f"node{len(self.nodes)}.log"
        self.nodes.append(Node([ray, "start", *arguments, *common], self.environment, log).wait())
        return self.nodes[-1]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def drive(self, function: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run `module.function(*arguments)` of the tests in a process of its own, as a driver of this cluster."""
        module, name = function.split(".")
        code = f"import sys, {module}; {module}.{name}(*sys.argv[1:])"
        log = (self.folder / "driver.log").open("ab")
        with log:
            driver = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=self.environment | {"RAY_ADDRESS": f"127.0.0.1:{self.port}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.drivers.append(driver)
        return driver

    def said(self) -> str:
        """What the drivers printed, without the complaints of one of Ray's actors that there is no dashboard."""
        lines = (self.folder / "driver.log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "PlacementGroupCleaner" not in line)


def processes(ancestor: int) -> Iterator[tuple[int, str]]:
    """(pid, command line) of everything below a process, in the order of their starts."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
                names[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
    below = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in sorted(below - {ancestor}):
        yield pid, Path(names[pid].partition(" --")[0]).name if "/raylet" in names[pid] else names[pid]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], what: Callable[[], str] = str) -> None:
    """Wait for something to come true. Raises AssertionError when it does not, with what `what` says: it hangs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it hangs: {what()[-4000:]}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
