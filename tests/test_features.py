"""features.py: what is computed once trains like what is computed anew, is shared, and goes on where it was."""

import numpy as np
import pytest
import torch
from conftest import AUS, describe, make_recipe, make_training
from safetensors.numpy import load_file

from aupipe import features, loop
from aupipe.checkpoint import save_checkpoint
from aupipe.clips import ClipSpec, Epoch, clip_batches, plan_clips
from aupipe.progress import TIMINGS
from aupipe.schema import ConfigError, DataError

SGD = {"name": "sgd", "lr": 0.02, "weight_decay": 5e-4}
CLIP = {"frames": 6, "stride": 6}  # runs of 20 frames: the last window of a val session is short
INPUT = {"align": "face112", "crop": 96, "resize": 32}


def relational(crops=3, epochs=2, **changes):
    """The second phase of a STRAL of feature width 8 on frames of 32 pixels."""
    phase = {"name": "relations", "epochs": epochs, "batch": 4, "optimiser": SGD, "crops": crops}
    values = {"model": {"name": "stral", "c": 1, "variant": "stral"}, "input": INPUT, "clip": CLIP, "phases": [phase]}
    return make_recipe(**values | changes)


@pytest.fixture(scope="module", name="origin")
def make_origin(tmp_path_factory):
    """The checkpoint of an attention stage whose norms have seen something, and whose features differ from face to face."""
    directory = tmp_path_factory.mktemp("origin") / "checkpoint"
    recipe = relational(0, model={"name": "stral", "c": 1, "variant": "al_r"})
    torch.manual_seed(1)
    model = describe(recipe).new_model()
    with torch.no_grad():
        model.attention.branches.feature.weight.mul_(30)
        model.train()(torch.rand(8, 1, 3, 32, 32))
    save_checkpoint(directory, model, describe(recipe))
    return loop.Origin(directory)


def train(shards, directory, recipe, origin, worker=None, **changes):
    changes = {"origin": origin, "features": directory / "kept"} | changes
    return loop.fit(make_training(shards, directory, recipe, **changes), worker)


def figures(history):
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in history]


def batches_of_variants(crops):
    """clip_batches with each clip cropped and mirrored as the variant that it draws of three."""

    def batches(plan, shards, spec, **given):
        epoch = Epoch(given["train"], given.get("seed", 0), given.get("epoch", 0))
        for batch in clip_batches(plan, shards, spec, **given):
            sessions = plan["path"].take(batch.clip_B).to_pylist()
            yield features.apply_variant(batch, sessions, features.pick_variants(batch.clip_B, epoch, crops), spec)

    return batches


def test_kept_features_train_like_frames_with_the_same_crops(shards, tmp_path, origin):
    kept = train(shards, tmp_path / "kept", relational(), origin)
    worker = loop.Worker(batches=batches_of_variants(3))
    anew = train(shards, tmp_path / "anew", relational(0), origin, worker)
    for one, other in zip(kept, anew, strict=True):
        assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], abs=1e-5)
        assert one["val"]["loss"] == pytest.approx(other["val"]["loss"], abs=1e-5)
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("kept", "anew"))
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], atol=1e-5, err_msg=name)
    start = load_file(origin.checkpoint / "model.safetensors")
    assert all(np.array_equal(values, one[name]) for name, values in start.items() if name.startswith("attention."))


def test_no_face_is_read_once_features_are_kept(shards, tmp_path, origin, monkeypatch):
    whole = train(shards, tmp_path / "a", relational(), origin)
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("features were computed again"))
    monkeypatch.setattr(loop, "read_frames", lambda *_, **__: pytest.fail("frames were read"))
    shared = tmp_path / "a" / "kept"
    assert figures(train(shards, tmp_path / "b", relational(), origin, features=shared)) == figures(whole)
    # Another variant on the same weights shares them too.
    other = relational(model={"name": "stral", "c": 1, "variant": "gsf"}, loss={"attention_l1": 0.5})
    history = train(shards, tmp_path / "c", other, origin, features=shared)
    assert "attention_l1" not in history[0]["train"]


def test_regulariser_of_frozen_maps_is_no_term(shards, tmp_path, origin):
    history = train(shards, tmp_path, relational(0, epochs=1, loss={"attention_l1": 0.5}), origin)
    assert set(history[0]["train"]) == {"loss", "bce", "f1"}


def store_of(shards, tmp_path, origin, recipe):
    model = describe(recipe).new_model()
    loop.checkpoint.start_from(origin.checkpoint, model, describe(recipe))
    return model, features.open_store(tmp_path, model, recipe, recipe.phases[0].crops, shards)


def test_key_follows_all_that_features_depend_on(shards, tmp_path, origin):
    def key(**changes):
        return store_of(shards, tmp_path, origin, relational(**changes))[1].directory

    same = [{}, {"epochs": 3}, {"clip": {"frames": 4, "stride": 4}}, {"model": {"name": "stral", "c": 1, "threshold": 0.3}}]
    assert len({key(**changes) for changes in same}) == 1
    after_relu = {"name": "stral", "c": 1, "mask_after_relu": True}
    others = [{"crops": 2}, {"input": INPUT | {"crop": 80}}, {"model": after_relu}, {"precision": "bf16"}]
    assert len({key(), *(key(**changes) for changes in others)}) == 5
    model, store = store_of(shards, tmp_path, origin, relational())
    with torch.no_grad():
        model.attention.region_1.stem.bias[0] += 1
    assert features.open_store(tmp_path, model, relational(), 3, shards) != store


def fill(shards, store, model, recipe, **who):
    plan = plan_clips(shards, ["F001", "F002"], ClipSpec.of(recipe, AUS, 4), train=True)
    val = plan_clips(shards, ["F003"], ClipSpec.of(recipe, AUS, 4))
    spec = ClipSpec.of(recipe, AUS, 4)
    features.fill_store(store, model, recipe, shards, ((plan, spec, 3), (val, spec, 1)), **who)


def test_interrupted_pass_goes_on_with_what_is_missing(shards, tmp_path, origin, monkeypatch):
    model, store = store_of(shards, tmp_path, origin, relational())
    fill(shards, store, model, relational())
    files = sorted(store.directory.rglob("*.safetensors"))
    assert [str(p.relative_to(store.directory)) for p in files] == [f"F00{s}/T{t}.safetensors" for s in "123" for t in "12"]
    assert [load_file(p)["features"].shape for p in files] == [(3, 20, 3, 8)] * 4 + [(1, 20, 3, 8)] * 2
    before = [p.read_bytes() for p in files]
    files[0].write_bytes(before[0][:100])
    files[3].unlink()
    compute, made = features._compute, []
    monkeypatch.setattr(
        features, "_compute", lambda plan, *rest: (made.append(plan["path"][0].as_py()), compute(plan, *rest))[1]
    )
    fill(shards, store, model, relational())
    assert made == ["F001/T1.parquet", "F002/T2.parquet"]
    assert [p.read_bytes() for p in files] == before


def test_variants_but_the_first_are_augmented(shards, tmp_path, origin):
    kept = {}
    for augment in ("crop", "strong"):
        recipe = relational(input=INPUT | {"augment": augment})
        model, store = store_of(shards, tmp_path, origin, recipe)
        fill(shards, store, model, recipe)
        kept[augment] = load_file(store.directory / "F001" / "T1.safetensors")["features"]
    np.testing.assert_array_equal(kept["crop"][0], kept["strong"][0])
    for one, other in ((kept["crop"][1], kept["strong"][1]), (kept["crop"][1], kept["crop"][2])):
        assert not np.allclose(one, other, atol=1e-3)


def test_workers_share_the_sessions(shards, tmp_path, origin):
    model, store = store_of(shards, tmp_path, origin, relational())
    fill(shards, store, model, relational(), rank=0, world=2)
    first = set(store.directory.rglob("*.safetensors"))
    assert len(first) == 3
    fill(shards, store, model, relational(), rank=1, world=2)
    assert len(set(store.directory.rglob("*.safetensors"))) == 6


def test_feature_batches_are_those_of_the_clips(shards, tmp_path, origin):
    recipe = relational(clip={"frames": 6, "stride": 4, "interval": 2})
    model, store = store_of(shards, tmp_path, origin, recipe)
    fill(shards, store, model, recipe)
    spec = ClipSpec.of(recipe, AUS, 4)
    plan = plan_clips(shards, ["F001", "F002"], spec, train=True)
    given = {"train": True, "seed": 5, "epoch": 2, "rank": 1, "world": 2}
    pairs = zip(features.feature_batches(store, plan, shards, spec, **given),
                batches_of_variants(3)(plan, shards, spec, **given), strict=True)  # fmt: skip
    variants = set()
    for kept, clips in pairs:
        for name in ("labels_BTM", "mask_BTM", "clip_B", "real_BT"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(clips, name))
        frames = features.read_frames(clips, model, recipe.input, "cpu", train=True)
        np.testing.assert_allclose(kept.features_BTMD, model.features(frames).numpy(), atol=1e-5)
        variants |= set(features.pick_variants(kept.clip_B, Epoch(True, 5, 2), 3).tolist())
    assert variants == {0, 1, 2}


def test_variant_of_a_clip_is_drawn_for_seed_epoch_and_clip():
    clips = np.arange(200)
    drawn = features.pick_variants(clips, Epoch(True, 1, 4), 4)
    assert set(drawn) == {0, 1, 2, 3}
    np.testing.assert_array_equal(features.pick_variants(clips[50:60], Epoch(True, 1, 4), 4), drawn[50:60])
    assert (features.pick_variants(clips, Epoch(True, 1, 5), 4) != drawn).any()
    assert (features.pick_variants(clips, Epoch(True, 2, 4), 4) != drawn).any()
    assert not features.pick_variants(clips, Epoch(False), 4).any()


def test_features_of_a_model_that_trains_all_of_itself_are_refused(shards, tmp_path):
    phase = {"name": "train", "epochs": 1, "batch": 8, "optimiser": SGD, "crops": 2}
    with pytest.raises(ConfigError, match=r"attention_cnn trains all of itself.*set the phases' crops to 0"):
        loop.fit(make_training(shards, tmp_path, make_recipe(phases=[phase])))


def test_features_that_are_not_numbers_name_their_session(shards, tmp_path, origin):
    model, store = store_of(shards, tmp_path, origin, relational())
    with torch.no_grad():
        model.attention.region_1.stem.bias[0] = float("nan")
    with pytest.raises(DataError, match=r"the features of F001/T1\.parquet are not all numbers"):
        fill(shards, store, model, relational())
    assert not list(store.directory.rglob("*.safetensors"))


def test_features_that_went_away_are_one_sentence(shards, tmp_path, origin):
    _, store = store_of(shards, tmp_path, origin, relational())
    spec = ClipSpec.of(relational(), AUS, 4)
    plan = plan_clips(shards, ["F001"], spec, train=True)
    with pytest.raises(DataError, match=r"F001/T.\.safetensors cannot be read.*run the training again"):
        next(features.feature_batches(store, plan, shards, spec, train=True))
