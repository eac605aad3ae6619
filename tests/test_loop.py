"""loop.py: it learns what can be seen, and goes on exactly where it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import AUS, describe, make_recipe, make_training
from safetensors.torch import load_file

from aupipe import inference, loop, schema
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.metrics import Counts
from aupipe.progress import TIMINGS
from aupipe.schema import DataError


def phase(name, epochs, /, **optimiser):
    return {"name": name, "epochs": epochs, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001, **optimiser}}


SPARSE = {"frames": 2, "stride": 9}  # few windows: three steps per epoch


def figures(history):
    """The records without what depends on the machine."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in history]


class InterruptionError(Exception):
    pass


def stop_after(epochs):
    def on_epoch(record):
        if record["epoch"] == epochs:
            raise InterruptionError

    return on_epoch


def assert_same_weights(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert list(one) == list(other)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_training_learns_what_can_be_seen(shards, tmp_path):
    # AU 4 brightens the middle, which a mirrored face shares; calling every frame positive has an F1 of about 0.57.
    recipe = make_recipe(phases=[phase("train", 4, lr=0.002)], loss={"weighting": "positive"})
    history = loop.fit(make_training(shards, tmp_path, recipe))
    assert history[-1]["val"]["loss"] < 0.9 * history[0]["val"]["loss"]
    assert history[-1]["val_f1"]["AU04"] > 0.9
    model, description = load_checkpoint(tmp_path / "checkpoint")
    spec = ClipSpec.of(recipe, AUS, 8)
    table = inference.predict_table(model, description, plan_clips(shards, ["F006"], spec), shards, spec)
    labels, mask = schema.label_arrays(table, AUS)
    probs = np.stack([table[c].to_numpy() for c in AUS.probability_columns], 1)
    counts = Counts.from_probs(probs, labels, mask & ~np.isnan(probs))
    assert counts.f1()[1] > 0.9, "on a subject that it has never seen"


PHASES = [phase("warm", 2), phase("tune", 2, name="sgd", lr=0.01, decay=0.5)]


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    """A training of two phases, and its history."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    return directory, loop.fit(make_training(shards, directory, make_recipe(phases=PHASES, clip=SPARSE)))


def test_phases_follow_each_other_with_optimisers_of_their_own(uninterrupted):
    expected = [("warm", 0.001)] * 2 + [("tune", 0.01), ("tune", 0.005)]
    assert [(record["phase"], record["lr"]) for record in uninterrupted[1]] == expected


def test_records_hold_an_epoch_each_with_the_figures_of_both_sides(uninterrupted):
    directory, history = uninterrupted
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    for record in history:
        assert list(record["val_f1"]) == ["AU01", "AU04", "AU12"]
        assert record["val"]["f1"] == pytest.approx(np.mean(list(record["val_f1"].values())))
        assert record["train"]["loss"] == pytest.approx(record["train"]["bce"])
    assert sorted(p.name for p in directory.iterdir()) == ["checkpoint", "last"]


def test_checkpoint_is_of_the_best_epoch_on_val(shards, tmp_path, monkeypatch):
    scores, run, kept = [None, 0.2, 0.7, 0.7, 0.5], loop.Pass.run, []

    def run_with_score(self, *given):
        record = run(self, *given)
        record["val"]["f1"] = scores[self.epoch]
        return record

    def on_epoch(record):
        kept.append(load_file(tmp_path / "checkpoint" / "model.safetensors"))
        last = load_file(tmp_path / "last" / "model.safetensors")
        is_last = all(torch.equal(kept[-1][k], last[k]) for k in last)
        assert is_last == (record["epoch"] != 5), "the fifth is worse; of two equals, the later one is taken"

    monkeypatch.setattr(loop.Pass, "run", run_with_score)
    loop.fit(make_training(shards, tmp_path, make_recipe(phases=[phase("train", 5)], clip=SPARSE), on_epoch=on_epoch))
    assert all(torch.equal(kept[4][k], kept[3][k]) for k in kept[3])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_training_ends_like_an_uninterrupted_one(shards, tmp_path, uninterrupted, stop):
    directory, whole = uninterrupted
    recipe = make_recipe(phases=PHASES, clip=SPARSE)
    with pytest.raises(InterruptionError):
        loop.fit(make_training(shards, tmp_path, recipe, on_epoch=stop_after(stop)))
    assert figures(loop.fit(make_training(shards, tmp_path, recipe))) == figures(whole)
    for name in ("last", "checkpoint"):
        assert_same_weights(tmp_path / name, directory / name)


def test_finished_training_is_not_trained_again(shards, tmp_path, monkeypatch):
    recipe = make_recipe(phases=[phase("train", 1)], clip=SPARSE)
    history = loop.fit(make_training(shards, tmp_path, recipe))
    before, told = (tmp_path / "checkpoint" / "model.safetensors").read_bytes(), []
    monkeypatch.setattr(loop.Pass, "run", lambda *_: pytest.fail("it was trained again"))
    assert loop.fit(make_training(shards, tmp_path, recipe, on_epoch=told.append)) == history
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == before
    assert told == history, "in case that it was killed before it told"


def test_seed_decides_the_training(shards, tmp_path):
    recipe = make_recipe(phases=[phase("train", 1)], clip=SPARSE)
    runs = [loop.fit(make_training(shards, tmp_path / str(n), recipe, seed=s)) for n, s in enumerate((1, 1, 2))]
    assert figures(runs[0]) == figures(runs[1])
    assert figures(runs[0]) != figures(runs[2])


def test_loss_that_is_not_a_number_is_an_error_with_its_clips(shards, tmp_path):
    recipe = make_recipe(phases=[phase("train", 1, name="sgd", lr=1e30)])
    with pytest.raises(DataError, match=r"the loss is (nan|inf) at clips \[\d+.*learning rate"):
        loop.fit(make_training(shards, tmp_path, recipe))
    assert not (tmp_path / "checkpoint").exists()


def test_mixed_precision_trains_to_finite_figures(shards, tmp_path):
    recipe = make_recipe(precision="bf16", phases=[phase("train", 1)], clip=SPARSE)
    full = make_recipe(phases=[phase("train", 1)], clip=SPARSE)
    mixed, exact = (loop.fit(make_training(shards, tmp_path / r.precision, r))[0]["train"]["loss"] for r in (recipe, full))
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.1)
    assert {t.dtype for t in load_file(tmp_path / "bf16/checkpoint/model.safetensors").values()} == {
        torch.float32,
        torch.int64,
    }


def test_one_cycle_rises_and_falls_with_every_step(shards, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    recipe = make_recipe(phases=[phase("train", 4, lr=0.01, schedule="one_cycle")], clip=SPARSE)
    loop.fit(make_training(shards, tmp_path, recipe))
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.0004)
    assert 0.009 < rates[top] <= 0.01
    assert top / len(rates) == pytest.approx(0.3, abs=0.1)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 0.0005


def test_one_cycle_goes_on_where_it_was(shards, tmp_path):
    recipe = make_recipe(phases=[phase("train", 3, schedule="one_cycle")], clip=SPARSE)
    whole = loop.fit(make_training(shards, tmp_path / "whole", recipe))
    with pytest.raises(InterruptionError):
        loop.fit(make_training(shards, tmp_path / "cut", recipe, on_epoch=stop_after(1)))
    assert figures(loop.fit(make_training(shards, tmp_path / "cut", recipe))) == figures(whole)
    assert_same_weights(tmp_path / "cut" / "last", tmp_path / "whole" / "last")


def test_augmented_training_sees_other_pictures_and_val_does_not(shards, tmp_path):
    plain, strong = (
        make_recipe(phases=[phase("train", 1)], clip=SPARSE, input={"align": "face112", "crop": 96, "augment": kind})
        for kind in ("crop", "strong")
    )
    one, other = (loop.fit(make_training(shards, tmp_path / r.input.augment, r))[0] for r in (plain, strong))
    assert one["train"]["loss"] != other["train"]["loss"]
    again = loop.fit(make_training(shards, tmp_path / "again", strong))[0]
    assert again["train"] == other["train"]
    assert again["val"] == other["val"]


def test_sums_of_workers_add_up():
    counts = Counts.from_probs([[0.9, 0.1, 0.9]], [[1, 1, 0]], np.ones((1, 3), bool))
    sums = loop.Sums(counts, {"bce": 3.0, "attention_l1": 1.0}, clips=2, frames=7)
    total = sums.reduced(lambda array: array * 2)
    assert (total.clips, total.frames, total.terms) == (4, 14, {"bce": 6.0, "attention_l1": 2.0})
    np.testing.assert_array_equal(total.counts.to_array(), 2 * counts.to_array())
    assert total.figures() == sums.figures() == {"loss": 2.0, "bce": 1.5, "attention_l1": 0.5, "f1": 0.5}
    np.testing.assert_array_equal(loop.sum_over_processes(np.array([1.5, 2])), [1.5, 2])


def gradients(shards, tmp_path, batch, **changes):
    """Gradients and loss terms of one batch of the recipe on a fresh model whose norms are as in prediction."""
    training = make_training(shards, tmp_path, make_recipe(**changes))
    torch.manual_seed(0)
    step = loop.Pass(training, loop.Worker(), training.description.new_model().eval(), training.recipe.phases[0], 0)
    terms, logits = step.differentiate(batch)
    return {name: p.grad for name, p in step.model.named_parameters()}, terms, logits


@pytest.fixture(name="batch")
def make_batch(shards, tmp_path):
    training = make_training(shards, tmp_path)
    return next(iter(clip_batches(training.train_plan, shards, ClipSpec.of(training.recipe, AUS, 8), train=True)))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_gradients_of_micro_batches_add_up(shards, tmp_path, batch, size):
    coded = replace(batch, mask_BTM=np.ones_like(batch.mask_BTM))
    whole, terms, logits = gradients(shards, tmp_path, coded, loss={"weighting": "inverse_rate"})
    parts, same_terms, same_logits = gradients(shards, tmp_path, coded, loss={"weighting": "inverse_rate"}, micro_batch=size)
    torch.testing.assert_close(same_logits, logits)
    torch.testing.assert_close(same_terms, terms)
    assert any(g.abs().max() > 1e-3 for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(name="group")
def make_group():
    """torch's process group of this process alone: DistributedDataParallel exchanges gradients with itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_workers_exchange_gradients_once_for_all_micro_batches(shards, tmp_path, batch, group):
    exchanged = []

    def count(state, bucket):
        exchanged.append(bucket.is_last())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    training = make_training(shards, tmp_path, make_recipe(micro_batch=3))
    steps = []
    for wrap in (lambda model: model, torch.nn.parallel.DistributedDataParallel):
        torch.manual_seed(0)
        model = wrap(training.description.new_model())
        if hasattr(model, "register_comm_hook"):
            model.register_comm_hook(None, count)
        steps.append(loop.Pass(training, loop.Worker(), model, training.recipe.phases[0], 0))
        steps[-1].differentiate(batch)
    assert exchanged.count(True) == 1, "of three micro-batches"
    alone, parallel = ({name: p.grad for name, p in step.bare.named_parameters()} for step in steps)
    assert all(torch.equal(parallel[name], gradient) for name, gradient in alone.items())
    exchanged.clear()
    steps[1].training = replace(training, recipe=replace(training.recipe, micro_batch=0))
    steps[1].differentiate(batch)
    assert exchanged.count(True) == 1


@pytest.mark.parametrize("model", [{"name": "attention_cnn"}, {"name": "stral", "c": 1, "variant": "al"}])
def test_norms_of_all_workers_keep_names_and_numbers(model):
    """What is done to a model on GPUs. Its norms then reach over workers in training alone, so a checkpoint serves both."""
    torch.manual_seed(0)
    plain = describe(make_recipe(model=model)).new_model().eval()
    assert loop.synchronise_norms(plain) is plain, "on a CPU"
    frames = torch.rand(1, 2, 3, 64, 64)
    wanted, names = plain(frames).logits_BTM, list(plain.state_dict())
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    assert list(synchronised.state_dict()) == names
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    assert torch.equal(synchronised(frames).logits_BTM, wanted)


def test_micro_batches_train_and_validate(shards, tmp_path):
    recipe = make_recipe(phases=[phase("train", 1)], clip=SPARSE, micro_batch=3)
    history = loop.fit(make_training(shards, tmp_path, recipe))
    plain = loop.fit(make_training(shards, tmp_path / "plain", make_recipe(phases=[phase("train", 1)], clip=SPARSE)))
    assert history[0]["train"]["loss"] == pytest.approx(plain[0]["train"]["loss"], rel=0.1)
    assert history[0]["train"]["loss"] != plain[0]["train"]["loss"]


def test_faces_that_are_not_numbers_name_their_clips(shards, tmp_path, monkeypatch):
    def read_frames(batch, *given, **how):
        frames = read(batch, *given, **how)
        frames[torch.from_numpy(batch.clip_B == 5)] = float("nan")
        return frames

    read = loop.read_frames
    monkeypatch.setattr(loop, "read_frames", read_frames)
    training = make_training(shards, tmp_path, make_recipe(phases=[phase("train", 1)], clip=SPARSE))
    row = training.train_plan.slice(5, 1).to_pylist()[0]
    with pytest.raises(DataError, match=rf"clips of {row['path']} from row {row['start']}; run `dvc repro shards`"):
        loop.fit(training)


def test_labels_that_are_not_numbers_name_their_clips(shards, tmp_path):
    def batches(*given, **how):
        for batch in clip_batches(*given, **how):
            labels = batch.labels_BTM.copy()
            labels[batch.clip_B == 5] = np.nan
            yield replace(batch, labels_BTM=labels)

    training = make_training(shards, tmp_path, make_recipe(phases=[phase("train", 1)], clip=SPARSE))
    with pytest.raises(DataError, match=r"not a number in faces or labels of clips of F00\d/T\d\.parquet from row \d+; run"):
        loop.fit(training, loop.Worker(batches=batches))


def test_compiled_training_is_the_same(shards, tmp_path, monkeypatch):
    compiled, compile_module = [], torch.nn.Module.compile

    def compile_plainly(self):  # the graph is captured and run, without the minutes that a C++ compiler takes
        compiled.append(self)
        compile_module(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_plainly)
    recipe = make_recipe(phases=[phase("train", 1)], clip=SPARSE)
    plain = loop.fit(make_training(shards, tmp_path / "plain", recipe))
    fast = loop.fit(make_training(shards, tmp_path / "fast", replace(recipe, compile=True)))
    assert len(compiled) == 1
    assert fast[0]["train"]["loss"] == pytest.approx(plain[0]["train"]["loss"], rel=1e-4)
    one, other = (load_file(tmp_path / name / "last/model.safetensors") for name in ("plain", "fast"))
    assert list(one) == list(other)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
