"""A cluster of several nodes loses one in the middle of the work: training goes on with fewer workers, sharding on the rest.

The nodes are those of `ray_nodes`, all on this machine: a head with one CPU, on which the driver runs, and one with three.
"""

import pytest
import ray_drivers
from ray_nodes import Nodes, until

from aupipe.checkpoint import load_checkpoint, load_progress
from aupipe.shards import load_index

SESSIONS = 30


@pytest.fixture(scope="module", name="nodes")
def start_nodes():
    with Nodes(cpus=1) as nodes:
        # For a cluster that is about to lose the node whose room Ray still counts on.
        nodes.environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
        yield nodes


def works(node, name):
    return any(what.startswith(f"ray::{name}") for _, what in node.workers())


def test_a_training_whose_node_is_lost_shrinks_and_ends_within_tolerance(nodes, shards, tmp_path):
    node, directory, calm = nodes.add(cpus=3), tmp_path / "run", ray_drivers.train_calmly(shards)
    driver = nodes.drive("ray_drivers.train", str(shards), str(directory))
    until(lambda: driver.poll() is not None or ray_drivers.steps_done(directory) >= 3, what=nodes.said)
    assert works(node, "RayTrainWorker"), "only there is room for both workers"
    node.kill()
    until(lambda: driver.poll() is not None, what=nodes.said)
    assert driver.returncode == 0, nodes.said()
    assert "going on with 1 of 2 after epoch" in nodes.said()
    ours, theirs = (load_progress(folder / "last")["history"] for folder in (directory, calm))
    assert [record["epoch"] for record in ours] == [1, 2]
    # The same clips in the same steps; only the statistics of batch normalisation are of eight clips, no longer of four.
    for one, other in zip(ours, theirs, strict=True):
        assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=0.25)
    assert load_checkpoint(directory / "checkpoint")
    assert sorted(path.name for path in directory.iterdir()) == ["checkpoint", "last"]


def test_a_build_whose_node_is_lost_makes_every_session_on_the_rest(nodes, tmp_path):
    raw, out = ray_drivers.write_raw(tmp_path / "bp4d", SESSIONS), tmp_path / "out"
    ray_drivers.build(str(raw), str(tmp_path / "calm"), cluster=False)
    node = nodes.add(cpus=3)
    driver = nodes.drive("ray_drivers.build", str(raw), str(out))
    until(
        lambda: driver.poll() is not None or (ray_drivers.sessions_done(out) >= 3 and works(node, "_work_in")),
        what=nodes.said,
    )
    node.kill()
    assert ray_drivers.sessions_done(out) < SESSIONS, "it was still at work, else nothing would be tested"
    until(lambda: driver.poll() is not None, what=nodes.said)
    assert driver.returncode == 0, nodes.said()
    assert len(load_index(out)["sessions"]) == SESSIONS
    assert ray_drivers.contents(out) == ray_drivers.contents(tmp_path / "calm")
