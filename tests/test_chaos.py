"""Workers, raylets, drivers and whole machines are killed in the middle of the work, which ends as if nothing had happened.

Who is killed and when comes from a seed; moments are counted in steps and sessions done. `make clusters` kills three times,
`make soak` 20 times.
"""

import contextlib
import os
import random
import signal

import pytest
import ray_drivers
from ray_nodes import Nodes, until

from aupipe.checkpoint import load_progress

SOAK = bool(os.environ.get("AUPIPE_SOAK"))
SEED = int(os.environ.get("AUPIPE_SEED", "1"))
SESSIONS = 30
KINDS = ("worker", "actor", "raylet", "driver", "machine")
# A raylet is missed only after a while: not in `make test`.
TRAINING, BUILDING = (("worker", "driver"), ("machine",)) if not SOAK else (12, 8)
pytestmark = pytest.mark.timeout(3600 if SOAK else 600)


@pytest.fixture(scope="module", name="nodes")
def start_nodes():
    with Nodes(cpus=2) as nodes:
        yield nodes


class Chaos:
    """Runs a driver to its end, and kills as it goes on.

    work: how the names of the processes begin that do the work. done: counts what is done of `total`, on disk.
    """

    def __init__(self, nodes, drive, work, done, total, kills):
        self.dice = random.Random(f"{SEED} {drive[0]}")
        if isinstance(kills, int):
            kills = [*KINDS, *self.dice.choices(KINDS, k=kills - len(KINDS))]
            self.dice.shuffle(kills)
        moments = sorted(self.dice.sample(range(1, total * 3 // 4), len(kills)))  # well before its end
        self.nodes, self.drive, self.work, self.done = nodes, drive, work, done
        self.plan = list(zip(kills, moments, strict=True))
        self.starts, self.killed = 0, []
        self.start()

    def start(self):
        self.starts += 1
        assert self.starts <= len(self.plan) + 1, f"nobody killed it, yet it ended early: {self.nodes.said()}"
        self.driver = self.nodes.drive(*self.drive)

    def run(self):
        for kind, moment in self.plan:
            self.wait(lambda moment=moment: self.done() >= moment)
            assert self.driver.poll() is None, "it is still at work, else nothing would be tested"
            getattr(self, f"kill_{kind}")()
            self.killed.append(kind)
        self.wait(lambda: self.driver.poll() == 0)
        until(lambda: not self.leftovers(), what=lambda: str(self.leftovers()))

    def leftovers(self):
        """What still runs in the cluster, but for actors of Ray's that live as long as it does (without a dashboard)."""
        own = ("ray::_StatsActor", "ray::_Autoscaling", "ray::PlacementGroupCleaner")
        return [name for _, name in self.nodes.workers() if not name.startswith(own)]

    def wait(self, condition):
        """For a condition; a driver that ends with an error, because of what was killed, is started again."""

        def check():
            if condition():
                return True
            if self.driver.poll() not in (None, 0):
                self.start()
            return self.driver.poll() == 0

        until(check, what=self.nodes.said)

    def kill_worker(self):
        """One of the processes that do the work."""
        self.kill_one(lambda name: name.startswith(self.work))

    def kill_actor(self):
        """Whatever runs in the cluster: Ray's own managers, cleaners and controllers too."""
        self.kill_one(lambda name: True)

    def kill_one(self, belongs):
        until(lambda: any(belongs(name) for _, name in self.nodes.workers()), what=self.nodes.said)
        pid, name = self.dice.choice([one for one in self.nodes.workers() if belongs(one[1])])
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
        self.killed.append(name)

    def kill_driver(self):
        self.driver.kill()
        self.driver.wait()

    def kill_raylet(self):
        """The driver finds out by itself that its node is gone; then everything is started anew."""
        os.kill(self.nodes.nodes[0].raylet, signal.SIGKILL)
        until(lambda: self.driver.poll() is not None, what=self.nodes.said)
        assert self.driver.poll() != 0
        self.kill_machine()

    def kill_machine(self):
        self.nodes.kill()
        self.nodes.start_head()


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(nodes, shards, tmp_path):
    directory, calm = tmp_path / "run", ray_drivers.train_calmly(shards)

    drive = ("ray_drivers.train", str(shards), str(directory))
    total = ray_drivers.EPOCHS * ray_drivers.STEPS
    chaos = Chaos(nodes, drive, "ray::RayTrainWorker", lambda: ray_drivers.steps_done(directory), total, TRAINING)
    chaos.run()
    for name in ("checkpoint/model.safetensors", "last/model.safetensors", "last/state.safetensors"):
        assert (directory / name).read_bytes() == (calm / name).read_bytes(), (name, chaos.killed)
    ours, theirs = (load_progress(folder / "last")["history"] for folder in (directory, calm))
    assert [record["epoch"] for record in ours] == list(range(1, ray_drivers.EPOCHS + 1))
    for name in ("lr", "train", "val", "val_f1"):
        assert [record[name] for record in ours] == [record[name] for record in theirs]
    assert sorted(path.name for path in directory.iterdir()) == ["checkpoint", "last"]


def test_a_build_that_is_killed_again_and_again_ends_with_the_same_shards(nodes, tmp_path):
    raw, out = ray_drivers.write_raw(tmp_path / "bp4d", SESSIONS), tmp_path / "out"
    ray_drivers.build(str(raw), str(tmp_path / "calm"), cluster=False)
    drive = ("ray_drivers.build", str(raw), str(out))
    (out / "F001").mkdir(parents=True)
    (out / "F001" / ".T1.parquet.1.tmp").write_bytes(b"half of what a process wrote that was killed")
    Chaos(nodes, drive, "ray::_work_in", lambda: ray_drivers.sessions_done(out), SESSIONS, BUILDING).run()
    assert ray_drivers.contents(out) == ray_drivers.contents(tmp_path / "calm")
