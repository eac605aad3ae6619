"""figures.py: the picture of the relation graph shows the graph, every AU at a place of its own."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import AUS, describe, make_recipe
from stral_models import connect

from aupipe import figures
from aupipe.checkpoint import save_checkpoint
from aupipe.facs import ACTION_UNITS, AUSet
from aupipe.figures import Source, choose_root, draw_relation_graph, list_edges, load_source
from aupipe.models.stral import relation_graph
from aupipe.schema import ConfigError, DataError, LabelStats

# AU 4 in the middle: 1 and 6 beside it, 12 behind 6, 25 behind 12, 26 alone.
SIX = AUSet((1, 4, 6, 12, 25, 26))
CHAIN = relation_graph(connect(6, (0, 1), (1, 2), (0, 2), (1, 3), (3, 4)))


def draw(path, aus=SIX, graph=CHAIN, **options):
    draw_relation_graph(Source(aus, graph, "of a test"), path, **options)
    return path


def read_svg(path):
    """Each element of the picture that has an id: its style as a dict, and the points of its path."""
    found = {}
    for group in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}g"):
        paths = group.findall("{http://www.w3.org/2000/svg}path")
        if group.get("id", "")[:2] in ("a-", "b-") and len(paths) == 1:
            style = dict(part.strip().split(": ") for part in paths[0].get("style", "").split(";") if part.strip())
            numbers = [float(word) for word in paths[0].get("d", "").split() if word.strip("-").replace(".", "").isdigit()]
            found[group.get("id")] = (style, np.reshape(numbers, (-1, 2)))
    return found


@pytest.mark.parametrize("width", [1.0, figures._TURNED])
def test_every_au_has_a_place_that_no_other_covers(width):
    assert set(figures.PLACES) == set(ACTION_UNITS)
    places = np.array(list(figures.PLACES.values())) * (width, 1)
    distance = np.hypot(*(places[:, None] - places[None]).T) + np.eye(len(places))
    assert distance.min() > 2 * figures.RADIUS
    assert np.hypot(places[:, 0] / 0.76 / width, places[:, 1]).max() < 1, "on the face"


def test_edges_and_nodes_of_the_picture_are_those_of_the_graph(tmp_path):
    shown = read_svg(draw(tmp_path / "graph.svg"))
    edges = [("AU01", "AU04"), ("AU01", "AU06"), ("AU04", "AU06"), ("AU04", "AU12"), ("AU12", "AU25")]
    assert [(SIX.names[j], SIX.names[k]) for j, k in list_edges(CHAIN)] == edges
    nodes = {f"a-{n}-{name}" for n in range(3) for name in SIX.names} | {f"b-{name}" for name in SIX.names}
    spatial = {f"{panel}-{one}-{other}" for panel in "ab" for one, other in edges}
    temporal = {f"a-{n}-{name}-{n + 1}" for n in range(2) for name in SIX.names}
    assert set(shown) == nodes | spatial | temporal
    for name in spatial | temporal:
        style, (start, stop) = shown[name]
        assert style["stroke"].upper() == (figures.TEMPORAL if name in temporal else figures.SPATIAL)
        panel, *ends = name.split("-")
        if name in temporal:
            ends = [f"{ends[0]}-{ends[1]}", f"{ends[2]}-{ends[1]}"]
        elif panel == "a":
            ends = [f"0-{end}" for end in ends]
        for end, at in zip(ends, (start, stop), strict=True):
            circle = shown[f"{panel}-{end}"][1]
            np.testing.assert_allclose((circle.min(0) + circle.max(0)) / 2, at, atol=0.01)


def test_colours_are_those_of_the_partition(tmp_path):
    shown = read_svg(draw(tmp_path / "graph.svg", root=12))
    fills = {name: shown[f"b-{name}"][0]["fill"].upper() for name in SIX.names}
    # AU4 is the centre, one hop from AU12; AU25 is two hops away.
    expected = {"AU12": figures.ROOT, "AU04": figures.CENTRE, "AU25": figures.CENTRIFUGAL}
    assert fills == {name: expected.get(name, figures.OTHER) for name in SIX.names}
    assert shown["b-AU04"][0]["stroke"].upper() == figures.CENTRIPETAL, "the centre's rim tells its class"
    shown = read_svg(draw(tmp_path / "graph.svg", root=4))
    assert shown["b-AU04"][0]["fill"].upper() == figures.ROOT
    assert shown["b-AU04"][0]["stroke"].upper() == figures.CENTRE
    assert {shown[f"b-{name}"][0]["fill"].upper() for name in ("AU01", "AU06", "AU12")} == {figures.CENTRIFUGAL}
    shown = read_svg(draw(tmp_path / "graph.svg", root=1))
    assert shown["b-AU06"][0]["fill"].upper() == figures.CENTRIPETAL, "as far away as the root"


def test_default_root_shows_all_kinds():
    assert SIX.numbers[choose_root(CHAIN)] == 12
    assert choose_root(relation_graph(np.eye(3))) in range(3)
    assert choose_root(relation_graph(np.eye(1))) == 0


def test_same_graph_gives_the_same_file(tmp_path):
    for suffix, head in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        first, again = (draw(tmp_path / f"{name}{suffix}").read_bytes() for name in ("first", "again"))
        assert first == again
        assert first.startswith(head)


def test_single_au_and_undefined_correlations_can_be_drawn(tmp_path):
    assert draw(tmp_path / "one.svg", AUSet((12,)), relation_graph(np.eye(1))).stat().st_size
    assert draw(tmp_path / "none.svg", AUS, relation_graph(np.full((3, 3), np.nan))).stat().st_size


@pytest.mark.parametrize(
    ("name", "root", "reason"), [("graph.gif", None, r"ends in \.svg, \.png, \.pdf"), ("graph.svg", 99, "AU99 is not among")]
)
def test_slip_is_named_and_leaves_no_file(tmp_path, name, root, reason):
    with pytest.raises(ConfigError, match=reason):
        draw(tmp_path / name, root=root)
    assert not list(tmp_path.iterdir())


STATS = LabelStats(np.full(3, 0.3), connect(3, (0, 1)) * 0.5 + 0.5 * np.eye(3), np.full(3, 50))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with params.yaml, the folds of a corpus and two trained models, to stand in."""
    monkeypatch.chdir(tmp_path)
    corpora = "corpora: {own: {layout: generic, aus: [1, 4, 12]}, other: {layout: generic, aus: [1, 4]}}\n"
    experiment = "seed: 1\nexperiment: {recipes: [r], corpora: [own], folds: [fold1]}\n"
    phase = "{name: train, epochs: 1, batch: 1, optimiser: {name: sgd, lr: 1}}"
    recipe = f"model: {{name: attention_cnn}}, input: {{}}, clip: {{frames: 1, stride: 1}}, phases: [{phase}]"
    Path("params.yaml").write_text(f"{experiment}{corpora}recipes: {{r: {{{recipe}}}}}\n")
    sides = {"train": ["A"], "val": ["B"], "test": ["C"], "aliases": []}
    folds = {"folds": [{"name": "fold1", **sides, "stats": STATS.to_json()}]}
    Path("data/folds").mkdir(parents=True)
    for name in ("own", "other"):
        Path(f"data/folds/{name}.json").write_text(json.dumps(folds))
    for name, model in (("cnn", {"name": "attention_cnn"}), ("graph", {"name": "stral", "c": 1, "threshold": 0.3})):
        made = describe(make_recipe(model=model), stats=STATS.to_json(), corpus="own", fold="fold1")
        save_checkpoint(Path(f"runs/{name}/checkpoint"), made.new_model(), made)
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_graph_is_that_of_the_corpus_or_of_the_checkpoint():
    for name, edges in (("own", 1), ("runs/cnn", 1), ("runs/cnn/checkpoint", 1), ("runs/graph", 0)):
        source = load_source(name)
        assert source.aus == AUS
        assert len(list_edges(source.graph)) == edges, "r is 0.25; the second model's threshold is 0.3"
        assert f"r ≥ {'0.3' if edges == 0 else '0.15'}" in source.caption
        assert "own, fold1" in source.caption


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("name", "fold", "error", "reason"),
    [
        ("absent", "fold1", ConfigError, "unknown corpus 'absent'"),
        ("own", "fold7", ConfigError, "unknown fold 'fold7'"),
        ("other", "fold1", DataError, "statistics of 3 AUs for 2"),
    ],
)
def test_source_that_has_no_graph_is_named(name, fold, error, reason):
    with pytest.raises(error, match=reason):
        load_source(name, fold)
