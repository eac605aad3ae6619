"""checkpoint.py: what is loaded is what was saved, whole or not at all, and nothing is ever unpickled."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from conftest import describe, make_recipe
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aupipe import checkpoint
from aupipe.checkpoint import (
    load_checkpoint,
    load_optimiser,
    load_progress,
    load_weights,
    save_checkpoint,
    save_state,
    settle,
)
from aupipe.config import OptimiserConfig
from aupipe.optimisers import make_optimiser
from aupipe.schema import ConfigError, DataError

DESCRIPTION = describe(
    make_recipe(), recipe="r", corpus="c", fold="fold1", provenance={"git": "abc"}, subjects={"train": ["F001"]}
)


@pytest.fixture
def model():
    """A model with weights and running statistics that a new one does not have."""
    torch.manual_seed(1)
    model = DESCRIPTION.new_model().train()
    model(torch.rand(2, 1, 3, 64, 64))
    return model


@pytest.fixture
def saved(model, tmp_path):
    save_checkpoint(tmp_path / "checkpoint", model, DESCRIPTION)
    return tmp_path / "checkpoint"


def assert_equal_states(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


def test_model_comes_back_to_the_bit(model, saved):
    loaded, description = load_checkpoint(saved)
    assert description == DESCRIPTION
    assert not loaded.training
    assert_equal_states(model.state_dict(), loaded.state_dict())
    frames = torch.rand(1, 2, 3, 64, 64)
    assert torch.equal(model.eval()(frames).logits_BTM, loaded(frames).logits_BTM)


def test_checkpoint_is_safetensors_and_json_that_describe_themselves(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["checkpoint.json", "model.safetensors"]
    values = json.loads((saved / "checkpoint.json").read_text())
    assert values["model"] == {"name": "attention_cnn"}
    assert values["aus"] == [1, 4, 12]
    plain = {"resize": None, "normalise": "model", "augment": "crop"}
    assert values["input"] == {"align": "face112", "crop": 64, **plain}
    assert values["landmarker"]["name"] == "blazemesh"


def test_same_model_gives_the_same_bytes(model, saved, tmp_path):
    save_checkpoint(tmp_path / "other", model, DESCRIPTION)
    for name in ("checkpoint.json", "model.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "missing, damaged or of another model"),
        (lambda d: (d / "checkpoint.json").unlink(), r"is no checkpoint.*dvc repro"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]), "damaged"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda d: (d / "checkpoint.json").write_text('{"model"'), "damaged checkpoint"),
        (lambda d: (d / "checkpoint.json").write_text("[]"), "damaged checkpoint"),
        (lambda d: edit(d / "checkpoint.json", lambda v: v.pop("aus")), "the key 'aus' is missing"),
        (lambda d: edit(d / "checkpoint.json", lambda v: v.update(new=1)), "unknown key 'new'"),
        (lambda d: edit(d / "checkpoint.json", lambda v: v.update(aus=[1, 4])), "of another model"),
        (lambda d: edit(d / "checkpoint.json", lambda v: v["model"].update(attention=False)), "of another model"),
    ],
)
def test_damaged_checkpoint_is_one_sentence(saved, damage, reason):
    damage(saved)
    with pytest.raises(DataError, match=reason) as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_directory_that_is_none_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "absent")


def test_no_pickle_is_loaded(saved):
    source = inspect.getsource(checkpoint)
    assert not [word for word in ("torch.load", "torch.save", "import pickle", "pickle.") if word in source]
    (saved / "model.safetensors").rename(saved / "model.pt")
    with pytest.raises(DataError, match="missing"):
        load_checkpoint(saved)
    torch.save(DESCRIPTION.new_model().state_dict(), saved / "model.safetensors")
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(saved)


def train(model, optimiser, steps):
    torch.manual_seed(steps)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.rand(2, 1, 3, 64, 64)).logits_BTM.square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize(("name", "momentum"), [("adam", 0.9), ("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
def test_training_goes_on_from_a_state_as_if_never_stopped(model, tmp_path, name, momentum):
    config = OptimiserConfig(name=name, lr=0.001, momentum=momentum, weight_decay=0.01)
    optimiser = make_optimiser(config, model)
    train(model, optimiser, 2)
    save_state(tmp_path / "last", model, DESCRIPTION, optimiser, {"history": [1, None]})
    train(model, optimiser, 3)

    other = DESCRIPTION.new_model().train()
    resumed = make_optimiser(replace(config, lr=0.5), other)
    load_weights(tmp_path / "last", other)
    load_optimiser(tmp_path / "last", resumed)
    assert resumed.param_groups[0]["lr"] == 0.001
    train(other, resumed, 3)
    assert_equal_states(model.state_dict(), other.state_dict())
    assert load_progress(tmp_path / "last") == {"history": [1, None]}


def test_no_state_is_no_progress(saved):
    assert load_progress(saved) is None
    assert load_progress(saved / "absent") is None


@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_failed_write_leaves_the_old_checkpoint_and_nothing_else(saved, monkeypatch, error):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(DataError, match=r"cannot write .*checkpoint \(.*No space left on device\); make room"):
        save_checkpoint(saved, DESCRIPTION.new_model(), DESCRIPTION)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    with pytest.raises(DataError, match=r"cannot write .*new"):
        save_checkpoint(saved.with_name("new"), DESCRIPTION.new_model(), DESCRIPTION)
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint"]


class KilledError(BaseException):
    pass


def kill_at(call, monkeypatch):
    """Have this process end, as checkpoint.py sees it, before its `call`-th change of a directory's name or being."""
    calls = iter(range(100))

    def dying(change):
        def changing(*given, **how):
            if next(calls) == call:
                raise KilledError
            return change(*given, **how)

        return changing

    monkeypatch.setattr(checkpoint.os, "replace", dying(checkpoint.os.replace))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dying(checkpoint.shutil.rmtree))


def test_killed_at_any_point_of_a_save_one_whole_state_is_found(model, tmp_path, monkeypatch):
    optimiser = make_optimiser(OptimiserConfig(name="adam", lr=0.001), model)
    last, found = tmp_path / "last", []
    for call in range(20):
        save_state(last, model, DESCRIPTION, optimiser, {"save": "old"})
        with monkeypatch.context() as patch:
            kill_at(call, patch)
            try:
                save_state(last, model, DESCRIPTION, optimiser, {"save": "new"})
            except KilledError:
                found.append(load_progress(last)["save"])
        settle(last)
        assert [p.name for p in tmp_path.iterdir()] == ["last"], "nothing else stays"
        assert load_progress(last)["save"] == (found[-1] if len(found) == call + 1 else "new")
        assert sorted(p.name for p in last.iterdir()) == sorted(
            [checkpoint.WEIGHTS, checkpoint.DESCRIPTION, checkpoint.STATE, checkpoint.STATE_DESCRIPTION, checkpoint.RANKS]
        )
        if len(found) <= call:
            break
    assert found == ["old"] * found.count("old") + ["new"] * found.count("new"), "new from some point on, and then always"
    assert min(found.count("old"), found.count("new")) >= 2


def test_the_next_save_removes_what_a_killed_one_left(saved):
    (saved.parent / ".checkpoint.12345.tmp").mkdir()
    (saved.parent / ".checkpoint.12345.tmp" / "model.safetensors").write_bytes(b"half")
    save_checkpoint(saved, DESCRIPTION.new_model(), DESCRIPTION)
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("text", ['{"progress"', '{"progress": {}}'])
def test_damaged_state_is_one_sentence(tmp_path, text):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.json").write_text(text)
    with pytest.raises(DataError, match=r"the state .*last/state.json is damaged.*delete .*last to begin anew"):
        load_progress(tmp_path / "last")


def test_new_checkpoint_takes_the_place_of_the_old_one(saved):
    (saved / "stale.txt").write_text("of the old one")
    torch.manual_seed(2)
    newer = DESCRIPTION.new_model()
    save_checkpoint(saved, newer, replace(DESCRIPTION, fold="fold2"))
    loaded, description = load_checkpoint(saved)
    assert description.fold == "fold2"
    assert_equal_states(newer.state_dict(), loaded.state_dict())
    assert not (saved / "stale.txt").exists()


def start(directory, recipe, au_map=None, **changes):
    """A fresh model of `recipe`, started from a checkpoint."""
    description = describe(recipe, **changes)
    torch.manual_seed(2)
    model = description.new_model()
    checkpoint.start_from(directory, model, description, au_map)
    return model


def test_model_starts_from_tensors_of_the_same_name_and_shape(model, saved):
    assert_equal_states(start(saved, make_recipe()).state_dict(), model.state_dict())
    # Without attention there is nothing that its weights could go to; a wider one keeps its own.
    plain = start(saved, make_recipe(model={"name": "attention_cnn", "attention": False}))
    wide = start(saved, make_recipe(model={"name": "attention_cnn", "width": 64}))
    given = model.state_dict()
    for other in (plain, wide):
        own = other.state_dict()
        taken = [name for name in own if name in given and given[name].shape == own[name].shape]
        assert any(name.startswith("extractor.") for name in taken)
        assert all(torch.equal(own[name], given[name]) for name in taken)
    assert wide.state_dict()["attention.score.weight"].shape == (1, 64)


def test_start_from_other_aus_needs_a_model_with_branches(saved):
    with pytest.raises(ConfigError, match=r"attention_cnn for AUs 1, 4, 2 starts from the same AUs.*has 1, 4, 12"):
        start(saved, make_recipe(), aus=(1, 4, 2))
    with pytest.raises(ConfigError, match="without an au_map"):
        start(saved, make_recipe(), {12: 4})


def test_start_from_another_model_is_refused(saved, tmp_path):
    recipe = make_recipe(model={"name": "stral", "variant": "al", "c": 1})
    with pytest.raises(DataError, match="holds a model attention_cnn, from which stral cannot start; name another recipe"):
        start(saved, recipe)
    with pytest.raises(DataError, match="is no checkpoint"):
        start(tmp_path / "absent", recipe)
    # Frozen embeddings are somebody else's: they take any model's trunk.
    embeddings = make_recipe(model={"name": "embeddings", "backbone": "attention_cnn", "random": True})
    own = start(saved, embeddings).state_dict()["backbone.trunk.0.weight"]
    assert torch.equal(own, load_file(saved / "model.safetensors")["extractor.0.weight"])
    (saved / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="missing, damaged or of another model"):
        start(saved, make_recipe())


def test_checkpoint_without_a_tensor_in_common_is_refused(saved):
    save_file({"other": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(DataError, match=r"no tensor in .*checkpoint has name and shape of one of this attention_cnn"):
        start(saved, make_recipe())


def test_stral_starts_from_mapped_branches_and_refuses_unmapped_ones(tmp_path):
    recipe = make_recipe(model={"name": "stral", "variant": "al", "c": 1})
    model = describe(recipe).new_model()
    save_checkpoint(tmp_path / "al", model, describe(recipe))
    other = start(tmp_path / "al", recipe, {9: 4}, aus=(1, 9, 12))
    assert torch.equal(other.attention.heads.weight, model.attention.heads.weight)
    with pytest.raises(ConfigError, match=r"AU09 has no branch to start from among AUs 1, 4, 12; name one in init\.au_map"):
        start(tmp_path / "al", recipe, aus=(1, 9, 12))
