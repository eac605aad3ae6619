"""The relation graph of AUs as a picture, after STRAL's figure 1, for SVG, PNG or PDF."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from aupipe.checkpoint import DESCRIPTION, load_description
from aupipe.config import load_params
from aupipe.facs import AUSet
from aupipe.folds import load_folds, pick_fold
from aupipe.models import check_config
from aupipe.models.stral import Config, RelationGraph, relation_graph
from aupipe.schema import ConfigError, DataError, LabelStats, replacing

FORMATS = (".svg", ".png", ".pdf")
FRAMES = 3
# Where each AU's node stands on the face: x to the right of the picture, y up, the face's height from −1 to 1. AUs of both
# sides have one node, on the side where there is room.
PLACES: dict[int, tuple[float, float]] = {
    **{1: (-0.14, 0.54), 2: (-0.46, 0.58), 4: (0.18, 0.46), 5: (0.45, 0.40), 43: (-0.22, 0.26), 45: (-0.45, 0.33)},
    **{6: (-0.54, 0.06), 7: (0.36, 0.17), 9: (0.02, 0.16), 10: (0.17, -0.16), 18: (-0.14, -0.20)},
    **{12: (-0.44, -0.30), 14: (0.48, -0.26), 24: (0.12, -0.36), 23: (-0.13, -0.39), 25: (-0.02, -0.54)},
    **{28: (0.18, -0.55), 15: (-0.36, -0.51), 20: (0.42, -0.47), 16: (-0.19, -0.67), 17: (0.03, -0.80), 26: (0.30, -0.74)},
}
RADIUS = 0.072  # of a node
# Okabe and Ito's palette, which colour-blind readers can tell apart; the names are STRAL's of the same things.
SPATIAL, TEMPORAL = "#0072B2", "#E69F00"
CENTRE, ROOT, CENTRIPETAL, CENTRIFUGAL, OTHER = "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#E6E6E6"
_INK, _FACE, _SKETCH = "#222222", "#F7F7F7", "#BDBDBD"
_PLAIN = (_INK, "0.6")  # rims that say nothing; others tell the class of the gravity centre
_TURNED, _STEP = 0.8, np.array([1.52, -0.1])  # faces of panel (a): a little from the side, and how far apart they stand
_SIDES = (-0.75, 0.75 + (FRAMES - 1) * _STEP[0]), (-1.0, 1.0)  # x of the two panels

Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Source:
    """A relation graph, the AUs that it joins, and a line that says where it comes from."""

    aus: AUSet
    graph: RelationGraph
    caption: str


def load_source(name: str, fold: str = "fold1") -> Source:
    """The graph of a checkpoint or run folder or, for a corpus of params.yaml, of the statistics of a fold's train side.

    A checkpoint of STRAL has the graph that it was trained with; others, and corpora, the one that STRAL's defaults give.
    Raises DataError if the fold has not been made or is of other AUs, ConfigError if `name` is neither.
    """
    for folder in (Path(name), Path(name) / "checkpoint"):
        if (folder / DESCRIPTION).exists():
            made = load_description(folder)
            options = check_config("stral", made.model) if made.model["name"] == "stral" else Config()
            where = f"{made.corpus}, {made.fold}"
            return _connect(made.au_set, LabelStats.from_json(made.stats), options, where)
    aus = load_params().corpus(name).au_set
    found = pick_fold(load_folds(Path(f"data/folds/{name}.json")), fold)
    return _connect(aus, found.stats, Config(), f"{name}, {found.name}")


def _connect(aus: AUSet, stats: LabelStats, config: Config, where: str) -> Source:
    if len(stats.rate_M) != len(aus):
        raise DataError(
            f"{where}: statistics of {len(stats.rate_M)} AUs for {len(aus)}; make the fold anew with `dvc repro`"
        )
    centre = None if config.centre is None else aus.index(config.centre)
    graph = relation_graph(stats.pearson_MM, config.threshold, centre=centre, max_hop=config.max_hop)
    caption = f"AUs are joined whose labels correlate by r ≥ {config.threshold:g} on the train side of {where}"
    return Source(aus, graph, caption)


def draw_relation_graph(source: Source, path: Path, root: int | None = None) -> None:
    """(a) the graph over three frames, (b) how the neighbours of an AU, `root`, are partitioned (STRAL eq. 6).

    The same input gives the same file, in which nodes and edges of an SVG have ids of their own. Raises ConfigError for a
    name that ends in none of FORMATS or a root that is none of the AUs; by default it is the AU that shows most of the
    partition.
    """
    aus, graph = source.aus, source.graph
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture's name ends in {', '.join(FORMATS)}, not as {path.name}; give another --output")
    if root is not None and root not in aus.numbers:
        raise ConfigError(f"AU{root:02d} is not among AUs {', '.join(map(str, aus))}; give one of them as the root")
    at = choose_root(graph) if root is None else aus.index(root)
    places = np.array([PLACES[number] for number in aus])
    widths = [right - left for left, right in _SIDES]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5), width_ratios=widths, layout="constrained")
    _draw_sequence(left, aus, graph, places)
    _draw_partition(right, aus, graph, places, at)
    for axes, sides in zip((left, right), _SIDES, strict=True):
        axes.set(aspect="equal", xlim=sides, ylim=(-1.4, 1.1))
        axes.axis("off")
    figure.supxlabel(source.caption, fontsize=9, color="0.35", x=0.01, ha="left")
    kind = path.suffix.lower()[1:]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with replacing(path) as temporary, plt.rc_context({"svg.hashsalt": "aupipe"}):
        figure.savefig(temporary, dpi=120, format=kind, metadata=undated)
    plt.close(figure)


def choose_root(graph: RelationGraph) -> int:
    """The AU with the most neighbours in the smaller of its two classes; of several the one with more neighbours."""
    closer, farther = ((part > 0).sum(1) for part in graph.partitions_3MM[1:])
    return int(np.lexsort((closer + farther, np.minimum(closer, farther)))[-1])


def list_edges(graph: RelationGraph) -> list[tuple[int, int]]:
    """Positions of the two AUs of every spatial edge, each once."""
    rows, columns = np.nonzero(np.triu(graph.adjacency_MM, 1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _draw_sequence(axes: Axes, aus: AUSet, graph: RelationGraph, places: Map) -> None:
    frames = [_turn(places, n) for n in range(FRAMES)]
    for n in range(FRAMES):
        _draw_face(axes, n)
    for n, (before, after) in enumerate(itertools.pairwise(frames)):
        for name, start, stop in zip(aus.names, before, after, strict=True):
            _draw_line(axes, start, stop, TEMPORAL, 1.1, 0.9, f"a-{n}-{name}-{n + 1}")
    for j, k in list_edges(graph):
        _draw_line(axes, frames[0][j], frames[0][k], SPATIAL, 1.4, 0.9, f"a-{aus.names[j]}-{aus.names[k]}")
    for n, frame in enumerate(frames):
        colours = [CENTRE if m == graph.centre else "white" for m in range(len(aus))]
        _draw_nodes(axes, aus, frame, colours, [_INK] * len(aus), 7.0, f"a-{n}")
        x, y = n * _STEP
        axes.text(x, y - 1.13, ("frame $t-1$", "frame $t$", "frame $t+1$")[n], ha="center", fontsize=9.5)
    axes.set_title("(a) AUs related within a frame and from frame to frame", fontsize=11, loc="left")
    most = f"AU{aus.numbers[graph.centre]}, which has the most neighbours"
    lines = [
        Line2D([], [], color=SPATIAL, lw=2, label="spatial edge: two correlated AUs; in every frame, drawn in one"),
        Line2D([], [], color=TEMPORAL, lw=2, label="temporal edge: one AU in two consecutive frames"),
        Line2D([], [], color=CENTRE, marker="o", ls="", ms=9, markeredgecolor=_INK, label=f"gravity centre: {most}"),
    ]
    _add_legend(axes, lines)


def _draw_partition(axes: Axes, aus: AUSet, graph: RelationGraph, places: Map, root: int) -> None:
    _draw_face(axes)
    for j, k in list_edges(graph):
        own = root in (j, k)
        width, alpha = (2.2, 1.0) if own else (1.0, 0.35)
        _draw_line(axes, places[j], places[k], SPATIAL, width, alpha, f"b-{aus.names[j]}-{aus.names[k]}")
    colours, rims = [OTHER] * len(aus), [_PLAIN[1]] * len(aus)
    for part, colour in zip(graph.partitions_3MM, (ROOT, CENTRIPETAL, CENTRIFUGAL), strict=True):
        for m in np.flatnonzero(part[root]):
            colours[m], rims[m] = colour, _INK
    if graph.centre == root:
        rims[root] = CENTRE
    else:
        rims[graph.centre] = _PLAIN[1] if colours[graph.centre] == OTHER else colours[graph.centre]
        colours[graph.centre] = CENTRE
    _draw_nodes(axes, aus, places, colours, rims, 8.5, "b")
    for (x, y), hops in zip(places, graph.hops_M, strict=True):
        text = "∞" if np.isinf(hops) else f"{hops:.0f}"
        halo = [withStroke(linewidth=2, foreground=_FACE)]
        axes.text(x + 0.09, y + 0.07, text, fontsize=7.5, color="0.3", ha="center", va="center", zorder=6, path_effects=halo)
    axes.set_title(f"(b) the neighbours of AU{aus.numbers[root]}, partitioned", fontsize=11, loc="left")
    centre = f"AU{aus.numbers[graph.centre]}"
    entries = (
        (CENTRE, f"gravity centre: {centre}; its rim tells its class"),
        (ROOT, "root: the AU whose neighbours these are"),
        (CENTRIPETAL, f"centripetal: as near to {centre} as the root, or nearer"),
        (CENTRIFUGAL, f"centrifugal: farther from {centre} than the root"),
        (OTHER, f"no neighbour of the root · small figures: hops to {centre}"),
    )
    marks = [
        Line2D([], [], color=colour, marker="o", ls="", ms=9, markeredgecolor=_INK, label=text) for colour, text in entries
    ]
    _add_legend(axes, marks)


def _add_legend(axes: Axes, handles: list[Line2D]) -> None:
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, fontsize=8.5, handlelength=1.6)


def _draw_nodes(axes: Axes, aus: AUSet, places: Map, colours: list[str], rims: list[str], size: float, panel: str) -> None:
    for number, name, (x, y), colour, rim in zip(aus, aus.names, places, colours, rims, strict=True):
        width = 1.1 if rim in _PLAIN else 2.4
        node = plt.Circle((x, y), RADIUS, facecolor=colour, edgecolor=rim, linewidth=width, zorder=4, gid=f"{panel}-{name}")
        axes.add_patch(node)
        axes.text(x, y - 0.004, str(number), fontsize=size, ha="center", va="center", zorder=5, color=_INK)


def _draw_line(axes: Axes, start: Map, stop: Map, colour: str, width: float, alpha: float, gid: str) -> None:
    axes.plot([start[0], stop[0]], [start[1], stop[1]], color=colour, linewidth=width, alpha=alpha, zorder=3, gid=gid)


def _turn(points: Map, frame: int | None) -> Map:
    """Points of the face (N, 2) where panel (a) shows them; None: as they are."""
    if frame is None:
        return points
    return points * (_TURNED, 1) + frame * _STEP


def _draw_face(axes: Axes, frame: int | None = None) -> None:
    """A schematic face behind the nodes: outline, ears, brows, eyes, nose and mouth."""
    outline = _oval(0, 0.02, 0.76, 1.0)
    outline[:, 0] *= 1 - 0.16 * np.clip(-outline[:, 1], 0, 1) ** 1.5  # narrower at the chin
    for side in (-1, 1):
        _sketch(axes, _oval(side * 0.765, 0.16, 0.07, 0.16), frame, closed=True)
    _sketch(axes, outline, frame, closed=True)
    bend = np.linspace(-1, 1, 21)
    for side in (-1, 1):
        _sketch(axes, np.stack([side * (0.31 + 0.19 * bend), 0.50 - 0.06 * bend**2], 1), frame, 3.0)
        _sketch(axes, np.stack([side * (0.31 + 0.14 * bend), 0.30 + 0.07 * (1 - bend**2)], 1), frame)
        _sketch(axes, np.stack([side * (0.31 + 0.14 * bend), 0.30 - 0.05 * (1 - bend**2)], 1), frame)
        _sketch(axes, _oval(side * 0.31, 0.31, 0.045, 0.05), frame)
    nose = [(-0.09, 0.10), (-0.15, -0.02), (-0.09, -0.07), (0, -0.10), (0.09, -0.07), (0.15, -0.02), (0.09, 0.10)]
    _sketch(axes, np.array(nose), frame)
    upper = -0.42 + 0.07 * (1 - bend**2) - 0.025 * np.exp(-((bend / 0.15) ** 2))
    _sketch(axes, np.stack([0.3 * bend, upper], 1), frame)
    _sketch(axes, np.stack([0.3 * bend, np.full(21, -0.42)], 1), frame)
    _sketch(axes, np.stack([0.3 * bend, -0.42 - 0.10 * (1 - bend**2)], 1), frame)


def _oval(x: float, y: float, width: float, height: float) -> Map:
    turn = np.linspace(0, 2 * np.pi, 61)
    return np.stack([x + width * np.cos(turn), y + height * np.sin(turn)], 1)


def _sketch(axes: Axes, points: Map, frame: int | None, width: float = 1.2, *, closed: bool = False) -> None:
    shown: Iterable[Map] = _turn(points, frame)
    if closed:
        axes.add_patch(Polygon(list(shown), facecolor=_FACE, edgecolor=_SKETCH, linewidth=width, zorder=1))
    else:
        axes.plot(*np.asarray(shown).T, color=_SKETCH, linewidth=width, zorder=2, solid_capstyle="round")
