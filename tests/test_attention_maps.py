"""benchmarks/attention_maps.py: regions, faces and maps lie on one another, and scores are what they say."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import describe, make_recipe

from aupipe import assets
from aupipe.models import AUOutput
from aupipe.schema import DataError
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import film
from aupipe.synthetic.truth import SHOWS, landmarks, set_intensity

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import attention_maps as bench

SUBJECT = bench.FIRST_SUBJECT
INPUTS = [("face200", 176), ("face112", 96)]


@pytest.fixture(scope="module")
def pools():
    """One person's examples by alignment, with exact landmarks."""
    assets.fetch()
    options = {"landmarker": "supplied", "aus": bench.PICTURED}
    return {name: bench.show_subject(SUBJECT, name=name, **options)[1] for name, _ in INPUTS}


class Oracle(torch.nn.Module):
    """Knows the regions: its maps are those of the examples that it is shown, in turn, averaged over so many cells."""

    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, examples: list[Any], crop: int, cells: int, change: Any = lambda maps: maps) -> None:
        super().__init__()
        regions = torch.from_numpy(bench.find_inside(bench.cut_regions(examples, crop), core=False)).float()
        self.maps = change(torch.nn.functional.adaptive_avg_pool2d(regions[:, None], cells)[:, 0])
        self.aus, self.at, self.seen = [example.au for example in examples], 0, None

    def forward(self, frames_BTCHW: torch.Tensor) -> AUOutput:
        B = len(frames_BTCHW)
        own = slice(self.at, self.at + B)
        self.at += B
        self.seen = frames_BTCHW
        maps = torch.zeros(B, 1, len(AUS), *self.maps.shape[1:])
        for row, (map_, au) in enumerate(zip(self.maps[own], self.aus[own], strict=True)):
            maps[row, 0, sorted(AUS).index(au)] = map_
        return AUOutput(torch.zeros(B, 1, len(AUS)), maps)


def attend(examples, name, crop, cells, change=lambda maps: maps):
    recipe = make_recipe(input={"align": name, "crop": crop})
    made = describe(recipe, aus=tuple(sorted(AUS)), recipe="oracle")
    model = Oracle(examples, crop, cells, change)
    return bench.attend(model, made, examples), model


def test_map_that_is_the_region_scores_one():
    regions = np.zeros((3, 20, 20), np.uint8)
    regions[0, 3:7, 4:9], regions[1, 0, 0], regions[2, 10:] = 40, SHOWS, 255
    inside = bench.find_inside(regions, core=False)
    np.testing.assert_allclose(bench.score(regions.astype(np.float32), inside), 1)
    np.testing.assert_allclose(bench.score(1 - inside.astype(np.float32), inside), 0)
    area = inside.mean((1, 2))
    np.testing.assert_allclose(bench.score(np.ones((3, 20, 20), np.float32), inside), np.stack([area, area], 1))


def test_hit_counts_the_share_of_the_largest_values_and_mass_the_share_of_the_sum():
    maps, inside = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), bool)
    inside[0, 0] = True
    maps[0, 0, 0], maps[0, 3, :3] = 2, (2, 1, 3)
    assert bench.score(maps, inside).tolist() == [[0, 0.25]]
    maps[0, 0, 1] = 3
    assert bench.score(maps, inside)[0].tolist() == pytest.approx([0.5, 5 / 11])
    assert np.isnan(bench.score(maps, np.zeros((1, 4, 4), bool))).all()


def test_core_is_where_half_of_the_most_shows():
    regions = np.zeros((2, 3, 3), np.uint8)
    regions[0, 0] = 200, 101, 99
    regions[1, 1] = SHOWS - 1
    core = bench.find_inside(regions, core=True)
    assert core[0, 0].tolist() == [True, True, False]
    assert core.sum() == 2


@pytest.mark.parametrize(("name", "crop"), INPUTS)
def test_what_an_au_changes_in_the_face_lies_in_its_region(pools, name, crop):
    """The whole geometry: pixels of the aligned face with and without the AU differ inside of the region alone."""
    actor, inside = prepare_actor(bench.SEED, SUBJECT), []
    for au in (2, 12, 17):
        scene, frame = bench.show(SUBJECT, au)
        scene = replace(scene, camera=replace(scene.camera, noise=0.0, glasses=False))
        points = landmarks(actor, scene, frame)
        present, absent = (
            bench.make_example(actor, shown, frame, au, name, film(actor, shown, frame), points)
            for shown in (scene, set_intensity(scene, frame, au, 0.0))
        )
        change = np.abs(present.face.astype(int) - absent.face).sum(2)
        inside.append(change[present.region >= SHOWS].sum() / change.sum())
        shifted = np.roll(present.region, crop // 4, axis=0) >= SHOWS
        assert change[shifted].sum() / change.sum() < 0.8, "another place would not do"
    assert min(inside) > 0.97
    assert tuple(example.au for example in pools[name]) == bench.PICTURED
    assert all((example.region >= SHOWS).any() for example in pools[name])


@pytest.mark.parametrize(("name", "crop"), INPUTS)
def test_model_that_knows_the_regions_scores_one_and_a_mirrored_one_does_not(pools, name, crop):
    examples = pools[name]
    inside = bench.find_inside(bench.cut_regions(examples, crop), core=False)
    right, model = attend(examples, name, crop, crop // 2)
    assert right.maps.shape == (len(examples), crop, crop)
    # Regions are cut as the model's frames are: a region that is the face's own red is what the model sees of it.
    red = bench.cut_regions([replace(example, region=example.face[..., 0]) for example in examples], crop)
    np.testing.assert_allclose(model.seen[:, 0, 0].numpy(), red / 255, atol=1e-6)
    hit, mass = bench.score(right.maps, inside).T
    assert hit.min() > 0.99
    assert mass.mean() > 0.95, "cells of 2 pixels reach over the edge"
    for change in (lambda maps: maps.flip(1), lambda maps: maps.roll(1, 0)):
        wrong, _ = attend(examples, name, crop, crop // 2, change)
        assert bench.score(wrong.maps, inside)[:, 1].mean() < mass.mean() - 0.2


def test_baselines_know_the_face_and_not_the_au(pools):
    examples = pools["face200"]
    row, _ = attend(examples, "face200", 176, 44)
    even, mean = bench.make_baselines(row)
    inside = bench.find_inside(bench.cut_regions(examples, 176), core=False)
    np.testing.assert_allclose(bench.score(even.maps, inside), np.repeat(inside.mean((1, 2))[:, None], 2, 1))
    np.testing.assert_allclose(mean.maps[0], inside.mean(0), rtol=1e-5)
    assert (mean.maps == mean.maps[0]).all()


def test_table_has_every_map_and_the_picture_every_au(pools, tmp_path, capsys):
    row, _ = attend(pools["face200"], "face200", 176, 44)
    small, _ = attend(pools["face112"], "face112", 96, 24)
    bench.print_table("region", [*bench.make_baselines(row), row], core=False)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line[:12].strip() for line in lines[2:]] == ["even, crop 1", "mean region,", "oracle"]
    assert lines[-1].split()[1] == "100"
    assert lines[1].split()[1:7] == [f"AU{au:02d}" for au in bench.PICTURED]
    bench.draw_picture([row, small], tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    at = [example.au for example in row.examples].index(12)
    shown = bench.overlay(row, at)
    inside = bench.find_inside(bench.cut_regions(row.examples, 176), core=True)[at]
    assert shown[inside][:, 1].mean() > shown[~inside][:, 1].mean() + 0.1, "the region glows"
    assert shown.shape == (176, 176, 3)


def test_interval_is_over_people():
    values = np.array([[0.0, 0.2], [1.0, np.nan], [0.5, 0.4]])
    mean, low, high = bench.interval(values)
    assert mean == pytest.approx(100 * (0.5 + 0.3) / 2)
    assert low < mean < high
    same = np.tile([[0.3, 0.5]], (4, 1))
    assert bench.interval(same) == pytest.approx((40, 40, 40))


def test_model_without_maps_or_without_our_aus_is_named(pools):
    class Blind(torch.nn.Module):
        MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

        def forward(self, frames_BTCHW: torch.Tensor) -> AUOutput:
            return AUOutput(torch.zeros(len(frames_BTCHW), 1, 3))

    recipe = make_recipe(input={"align": "face200", "crop": 176})
    with pytest.raises(DataError, match="blind has no attention maps"):
        bench.attend(Blind(), describe(recipe, recipe="blind"), pools["face200"])
    with pytest.raises(DataError, match="none of the generator's AUs"):
        bench.attend(Blind(), describe(recipe, aus=(45,), recipe="blink"), pools["face200"])
