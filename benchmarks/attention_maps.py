"""Do a model's attention maps lie where its AUs show? Against the exact regions of rendered faces.

Each AU is shown once on every person: in the frame where that person makes it most, at intensity 3 or more. Region is where
the picture would differ at all without the AU; core is where it would differ by half as much as at most. Hit is the pointing
game, the share of faces on which the map's largest value lies inside (of several largest ones, the share of them); mass is
the share of the map's sum that lies inside. Two maps that know nothing of the AU are the baselines: one that is even, and
the mean region of all AUs. Intervals are 95 % over people. Run, of checkpoints or runs (a minute for 20 people, and the
models' own time):

    python benchmarks/attention_maps.py CHECKPOINT … [--subjects 20] [--picture docs/images/attention-maps.jpg]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from aupipe.align import align
from aupipe.checkpoint import DESCRIPTION, Description, load_checkpoint
from aupipe.config import ALIGN_SIZE, SyntheticConfig, errors_as_sentences
from aupipe.facs import ACTION_UNITS
from aupipe.landmarks import load_landmarker
from aupipe.pixels import read_middle
from aupipe.processes import map_processes
from aupipe.schema import DataError
from aupipe.synthetic.corpus import settle
from aupipe.synthetic.render import Actor, prepare_actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import Scene, film, set_scene
from aupipe.synthetic.truth import SHOWS, landmarks, region_map, set_intensity

FIRST_SUBJECT, SEED = 500, 1  # nobody of a corpus in params.yaml
SHOWN = 3.0  # intensity, at least
BATCH, DRAWS = 16, 2000
PICTURED = (2, 4, 6, 12, 17, 25)  # of these a picture shows those that all models know
PEOPLE, TILE = 2, 0.9  # in a picture, and inches of a tile

Maps = NDArray[np.float32]  # (N, S, S)


@dataclass(frozen=True, slots=True)
class Example:
    """A face (S, S, 3) uint8, aligned, and where an AU shows in it: truth.region_map, (S, S) uint8."""

    subject: int
    au: int
    face: NDArray[np.uint8]
    region: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables and of the picture: who made the maps, of which examples, cut to which crop."""

    name: str
    examples: list[Example]
    crop: int
    maps: Maps


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    rows, pools = [], {}
    for path in given.checkpoints:
        model, made = load_checkpoint(path if (path / DESCRIPTION).exists() else path / "checkpoint")
        key = made.input.align, made.landmarker["name"]
        if key not in pools:
            pools[key] = render_examples(given.subjects, *key)
        rows.append(attend(model, made, pools[key]))
    kinds = {(id(row.examples[0]), row.crop, tuple(e.au for e in row.examples)): row for row in rows}
    everything = [line for row in kinds.values() for line in make_baselines(row)] + rows
    for title, core in (("region", False), ("core", True)):
        print_table(title, everything, core)
    if given.picture:
        draw_picture(rows, given.picture)
        print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")


def render_examples(subjects: int, name: str, landmarker: str) -> list[Example]:
    """Every AU of the generator on so many people; faces that were not found are left out and counted."""
    tasks = list(range(FIRST_SUBJECT, FIRST_SUBJECT + subjects))
    parts = sorted(map_processes(partial(show_subject, name=name, landmarker=landmarker), tasks), key=lambda part: part[0])
    examples = [example for _, part in parts for example in part]
    missing = subjects * len(AUS) - len(examples)
    print(f"{len(examples)} faces of {subjects} people as {name}; none was found in {missing} frames", flush=True)
    if not examples:
        raise DataError("no face was found in any frame; give more --subjects")
    return examples


def show_subject(subject: int, *, name: str, landmarker: str, aus: Sequence[int] = AUS) -> tuple[int, list[Example]]:
    """One person's examples, aligned by what the model's own landmarker finds, or by the exact landmarks if it has none."""
    cv2.setNumThreads(1)
    actor, finder = prepare_actor(SEED, subject), load_landmarker(landmarker) if is_finder(landmarker) else None
    examples = []
    for au in aus:
        scene, frame = show(subject, au)
        image = film(actor, scene, frame)
        if finder is None:
            points = landmarks(actor, scene, frame)
        elif (found := finder.find_face(image)) is not None:
            points = found.landmarks
        else:
            continue
        examples.append(make_example(actor, scene, frame, au, name, image, points))
    return subject, examples


def is_finder(landmarker: str) -> bool:
    return landmarker not in ("supplied", "prealigned")


def show(subject: int, au: int) -> tuple[Scene, int]:
    """A subject's scene, and the frame where the AU is strongest and at least SHOWN; without hands, which hide regions."""
    spec = settle(SyntheticConfig(subjects=1, sessions=1, fps=10, uncoded=0, seed=SEED, corruption=0.0), "bp4d")
    scene = set_scene(spec, subject, 1)
    scene = replace(scene, camera=replace(scene.camera, occluder=None))
    course = scene.motion.intensity_NM[:, AUS.index(au)]
    frame = int(course.argmax())
    return set_intensity(scene, frame, au, max(SHOWN, float(course[frame]))), frame


def make_example(
    actor: Actor, scene: Scene, frame: int, au: int, name: str, image: NDArray[np.uint8], points: NDArray[np.float32]
) -> Example:
    """Face and region go through the same alignment."""
    aligned = align(name, image, points)
    region = region_map(actor, scene, frame, au, warp=aligned.warp, size=ALIGN_SIZE[name])
    return Example(scene.subject, au, aligned.image, region)


@torch.no_grad()
def attend(model: nn.Module, made: Description, pool: list[Example]) -> Row:
    """The map of each example's AU, upsampled to the crop that the model sees. Raises DataError for a model without maps."""
    name = f"{made.recipe or made.model['name']}"
    examples = [example for example in pool if example.au in made.aus]
    if not examples:
        raise DataError(f"{name} knows none of the generator's AUs {', '.join(map(str, AUS))}; give another checkpoint")
    parts = []
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        faces = torch.from_numpy(np.stack([example.face for example in batch]))
        attention = model(read_middle(faces, model, made.input)[:, None]).attention_BTMhw
        if attention is None:
            raise DataError(f"{name} has no attention maps; give checkpoints of models that have")
        columns = [made.aus.index(example.au) for example in batch]
        parts.append(upsample(attention[torch.arange(len(batch)), 0, columns], made.input.crop))
    return Row(name, examples, made.input.crop, np.concatenate(parts))


def upsample(maps_Nhw: torch.Tensor, size: int) -> Maps:
    """Maps whose cells tile the crop → (N, size, size), bilinearly between the cells' centres."""
    large = F.interpolate(maps_Nhw[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
    return large[:, 0].numpy()


def cut_regions(examples: list[Example], crop: int) -> NDArray[np.uint8]:
    """The examples' regions (N, crop, crop), cut from the middle as pixels.read_middle cuts the faces."""
    edge = (examples[0].region.shape[0] - crop) // 2
    return np.stack([example.region[edge : edge + crop, edge : edge + crop] for example in examples])


def find_inside(regions: NDArray[np.uint8], core: bool) -> NDArray[np.bool_]:
    """Pixels (N, S, S) of the region or of its core."""
    if not core:
        return regions >= SHOWS
    strongest = regions.max((1, 2), keepdims=True)
    return (regions >= np.maximum(strongest / 2, SHOWS)) & (strongest >= SHOWS)


def score(maps: Maps, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, 2): hit and mass of each map. NaN where the AU shows nowhere."""
    flat, within = maps.reshape(len(maps), -1).astype(np.float64), inside.reshape(len(maps), -1)
    largest: NDArray[np.bool_] = np.equal(flat, flat.max(1, keepdims=True))
    hit = (largest & within).sum(1) / largest.sum(1)
    mass = (flat * within).sum(1) / np.maximum(flat.sum(1), 1e-12)
    return np.where(within.any(1, keepdims=True), np.stack([hit, mass], 1), np.nan)


def make_baselines(row: Row) -> list[Row]:
    """An even map, and the mean over AUs of the mean region of each, the same for all faces of a row."""
    regions = find_inside(cut_regions(row.examples, row.crop), core=False)
    numbers = np.array([example.au for example in row.examples])
    mean = np.mean([regions[numbers == au].mean(0) for au in dict.fromkeys(numbers.tolist())], 0).astype(np.float32)
    kinds = {"even": np.ones_like(mean), "mean region": mean}
    crop = f"crop {row.crop}"
    return [replace(row, name=f"{name}, {crop}", maps=np.broadcast_to(map_, regions.shape)) for name, map_ in kinds.items()]


def print_table(title: str, rows: list[Row], core: bool) -> None:
    """Per AU, and in the mean over AUs with its interval: hit and mass in per cent."""
    scored = [(row, score(row.maps, find_inside(cut_regions(row.examples, row.crop), core))) for row in rows]
    aus = [au for au in AUS if all(any(e.au == au for e in row.examples) for row in rows)]
    print(f"\n{title}: hit %, mass %")
    print("map".ljust(24) + "".join(f"{f'AU{au:02d}':>9s}" for au in aus) + "   mean over AUs")
    for row, values in scored:
        by_person = tabulate(row.examples, values, aus)
        cells = "".join(f"{hit:5.0f} {mass:3.0f}" for hit, mass in 100 * np.nanmean(by_person, 0))
        means = ["{:.1f} [{:.1f}, {:.1f}]".format(*interval(by_person[..., k])) for k in (0, 1)]
        print(f"{row.name:24s}{cells}   {', '.join(means)}", flush=True)


def tabulate(examples: list[Example], values: NDArray[np.float64], aus: list[int]) -> NDArray[np.float64]:
    """Values (N, 2) of examples as (people, AUs, 2), NaN where there is none."""
    people = sorted({example.subject for example in examples})
    table = np.full((len(people), len(aus), 2), np.nan)
    for example, value in zip(examples, values, strict=True):
        if example.au in aus:
            table[people.index(example.subject), aus.index(example.au)] = value
    return table


def interval(values_SM: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean over AUs of the mean over people, and its 95 % interval over people, in per cent."""
    people = len(values_SM)
    drawn_DS = np.random.default_rng(0).multinomial(people, np.full(people, 1 / people), DRAWS)
    weights_DS = np.concatenate([np.ones((1, people)), drawn_DS])
    sums, counts = weights_DS @ np.nan_to_num(values_SM), weights_DS @ ~np.isnan(values_SM)
    means = np.nanmean(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0), 1)
    low, high = np.nanquantile(means[1:], (0.025, 0.975))
    return 100 * float(means[0]), 100 * float(low), 100 * float(high)


def draw_picture(rows: list[Row], path: Path) -> None:
    """Faces × AUs, the exact region above and a row for each model (STRAL's figure 4)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    known = [[(e.subject, e.au) for e in row.examples] for row in rows]
    common = [pair for pair in known[0] if all(pair in other for other in known)]
    aus = [au for au in PICTURED if any(pair[1] == au for pair in common)]
    people = [s for s in dict.fromkeys(s for s, _ in common) if all((s, au) in common for au in aus)][:PEOPLE]
    columns = [(subject, au) for subject in people for au in aus]
    if not columns:
        raise DataError(f"no person shows all of AUs {', '.join(map(str, PICTURED))}; give more --subjects")
    regions = cut_regions(rows[0].examples, rows[0].crop).astype(np.float32)
    truth = replace(rows[0], name="exact region", maps=regions)
    shape = 1 + len(rows), len(columns)
    left = 0.2 + 0.075 * max(len(row.name) for row in (truth, *rows))  # inches, for the names
    width, height = left + TILE * shape[1] + 0.65, TILE * shape[0] + 0.4
    figure, grid = plt.subplots(*shape, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(left / width, 0, 1 - 0.65 / width, 1 - 0.4 / height, 0.03, 0.03)
    for line, row in zip(grid, [truth, *rows], strict=True):
        line[0].set_ylabel(row.name, fontsize=8, rotation=0, ha="right", va="center")
        for axes, pair in zip(line, columns, strict=True):
            at = [(e.subject, e.au) for e in row.examples].index(pair)
            shown = axes.imshow(overlay(row, at), extent=(0, 1, 0, 1))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, (_, au) in zip(grid[0], columns, strict=True):
        axes.set_title(f"AU{au}\n{ACTION_UNITS[au].name}", fontsize=6.5)
    shown.set(cmap="viridis", clim=(0, 1))
    bar = figure.colorbar(shown, cax=figure.add_axes((1 - 0.5 / width, 0.1, 0.1 / width, 0.65)))
    bar.ax.set_title("of the\nlargest", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def overlay(row: Row, at: int) -> NDArray[np.float64]:
    """The grey face of an example under its map (S, S, 3) in 0–1, the map scaled to its own largest value."""
    from matplotlib import colormaps

    face = row.examples[at].face
    edge = (face.shape[0] - row.crop) // 2
    grey = cv2.cvtColor(face[edge : edge + row.crop, edge : edge + row.crop], cv2.COLOR_RGB2GRAY)[..., None] / 255
    heat = colormaps["viridis"](row.maps[at] / max(float(row.maps[at].max()), 1e-12))[..., :3]
    mixed: NDArray[np.float64] = 0.5 * grey + 0.5 * heat
    return mixed


if __name__ == "__main__":
    with errors_as_sentences():
        main(sys.argv[1:])
