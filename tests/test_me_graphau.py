"""models/me_graphau.py: sizes of both stages, the graphs by hand, cosines as logits, the start of stage 2, bad input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baseline_models import (
    AUS,
    assert_a_masked_au_is_left_out,
    assert_frames_are_independent,
    build,
    frames,
    sizes,
    statistics,
    unreached,
)

from aupipe.facs import AU_SETS
from aupipe.losses import loss_terms
from aupipe.models import build_model, check_recipe
from aupipe.models.me_graphau import EPSILON, EdgeGraph, GatedLayer, LinearNorm, NearestGraph
from aupipe.recipes import ClipConfig, InputSpec, LossConfig, OptimiserConfig, PhaseConfig, Recipe
from aupipe.schema import ConfigError, DataError

PARAMETERS = {
    ("bp4d", 18, 1): 11_478_232,
    ("bp4d", 18, 2): 11_693_012,
    ("bp4d", 50, 1): 28_253_784,
    ("bp4d", 50, 2): 31_666_132,
    ("disfa", 18, 1): 11_410_640,
    ("disfa", 18, 2): 11_624_932,
    ("disfa", 50, 1): 27_197_008,
    ("disfa", 50, 2): 30_608_868,
}
TRUNK = {18: (11_176_512, 512, 1.814e9), 50: (23_508_032, 2048, 4.087e9)}


def small(stage=1, aus=AUS, seed=0, **options):
    return build("me_graphau", aus, seed, stage=stage, depth=18, **options)


@pytest.mark.parametrize(("corpus", "depth", "stage"), PARAMETERS)
def test_sizes_are_those_of_the_published_network(corpus, depth, stage):
    parameters, macs = sizes("me_graphau", corpus, 224, depth=depth, stage=stage)
    print(f"\n{corpus} ResNet-{depth} stage {stage}: {parameters:,} parameters, {macs / 1e9:.3f} GMAC")
    assert parameters == PARAMETERS[corpus, depth, stage]
    M, (trunk, C, trunk_macs), P = len(AU_SETS[corpus]), TRUNK[depth], 49
    D = C // 4
    shared = trunk + C * D + 3 * D + M * (D * D + 3 * D) + M * D
    if stage == 1:
        assert parameters == shared + 2 * (D * D + D) + 2 * M
    else:
        edges = 2 * (2 * D * D + 2 * D) + D * D + D + 2 * M * M
        assert parameters == shared + edges + 10 * D * D + 4 * (M + M * M) + 4 * D + 4
    linear = P * C * D + M * P * D * D
    expected = trunk_macs + linear + (2 * M * D * D + M * M * D if stage == 1 else 0)
    if stage == 2:
        attention = M * P * P * (D // 2 + D) + M * M * P * P * (D // 2 + D)
        projections = M * P * D * (D // 2) + P * D * (D // 2 + D) + M * P * D * (2 * (D // 2) + 2 * D)
        expected += attention + projections + 2 * (4 * M + M * M) * D * D + M * M * 4 * D
    assert macs == pytest.approx(expected, rel=1e-3)


def test_linear_norm_of_copies_is_that_many_layers():
    torch.manual_seed(0)
    several = LinearNorm(6, 5, copies=3).double().train()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    for m, part in enumerate(several(x).split(5, -1)):
        one = F.linear(x, several.linear.weight[5 * m : 5 * m + 5], several.linear.bias[5 * m : 5 * m + 5])
        torch.testing.assert_close(part, F.batch_norm(one.mT, None, None, training=True).mT.relu())
    wide = LinearNorm(64, 50, copies=4)
    assert wide.linear.weight.std().item() == pytest.approx(np.sqrt(2 / 50), rel=0.05), "the fan of one copy"


def test_neighbours_are_those_with_the_largest_products():
    graph = NearestGraph(4, 2, 2)
    # Products, by hand: 0·1 = 4, 0·2 = 0, 0·3 = 2; 1·2 = 0, 1·3 = 2; 2·3 = 3; squares 4, 4, 9, 2
    x = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    linked = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).float()  # the last has three equals
    degree = linked.sum(1)
    expected = linked / torch.sqrt(degree[:, None] * degree)
    torch.testing.assert_close(graph.adjacency(x)[0], expected)


def test_with_fewer_aus_than_neighbours_all_are_linked():
    x = torch.rand(2, 3, 5)
    torch.testing.assert_close(NearestGraph(3, 5, 4).adjacency(x), torch.full((2, 3, 3), 1 / 3))


def test_nearest_graph_is_the_published_update():
    torch.manual_seed(0)
    graph = NearestGraph(4, 6, 3).double().eval()
    graph.norm.running_mean.normal_()
    x = torch.rand(2, 4, 5, 6, dtype=torch.float64)
    nodes, relations = graph(x, x[:, 0])
    assert relations is None
    v = x.mean(2)
    for n in range(2):
        A = graph.adjacency(v)[n].double()
        change = A @ graph.others(v[n]) + graph.own(v[n])
        normed = (change - graph.norm.running_mean[:, None]) / torch.sqrt(graph.norm.running_var[:, None] + 1e-5)
        torch.testing.assert_close(nodes[n], torch.relu(v[n] + normed), rtol=0, atol=1e-6)


def attend(q, k, v):
    return torch.softmax(q @ k.T / np.sqrt(q.shape[1]), 1) @ v


def test_edges_are_attention_of_one_aus_places_to_anothers():
    torch.manual_seed(0)
    M, P, D = 3, 4, 6
    graph = EdgeGraph(M, D).double().eval()
    graph.norm.running_mean.normal_()
    graph.norm.running_var.uniform_(0.5, 2)
    u, face = torch.rand(1, M, P, D, dtype=torch.float64), torch.rand(1, P, D, dtype=torch.float64)
    a, b = graph.to_face, graph.to_other
    seen = [attend(a.query(u[0, m]), a.key(face[0]), a.value(face[0])) for m in range(M)]
    edges = graph.edges(u, face)
    assert edges.shape == (1, M, M, D)
    for i in range(M):
        for j in range(M):
            e = graph.project(attend(b.query(seen[j]), b.key(seen[i]), b.value(seen[i])))
            mean, var = graph.norm.running_mean[i * M + j], graph.norm.running_var[i * M + j]
            torch.testing.assert_close(edges[0, i, j], ((e - mean) / torch.sqrt(var + 1e-5)).mean(0), rtol=0, atol=1e-10)


def test_gated_layer_is_the_published_update():
    torch.manual_seed(0)
    M, D = 3, 4
    layer = GatedLayer(M, D).double().eval()
    x, e = torch.rand(1, M, D, dtype=torch.float64), torch.rand(1, M, M, D, dtype=torch.float64)
    nodes, edges = layer(x, e)
    scale = 1 / np.sqrt(1 + 1e-5)  # the norms have seen nothing
    for i in range(M):
        new = [
            e[0, i, j] + torch.relu(scale * (layer.end(x[0, i]) + layer.start(x[0, j]) + layer.edge(e[0, i, j])))
            for j in range(M)
        ]
        torch.testing.assert_close(edges[0, i], torch.stack(new), rtol=0, atol=1e-10)
        gates = torch.softmax(torch.sigmoid(torch.stack(new)), 0)
        received = sum(gates[j] * layer.others(x[0, j]) for j in range(M)) / M
        expected = torch.relu(x[0, i] + scale * (layer.own(x[0, i]) + received))
        torch.testing.assert_close(nodes[0, i], expected, rtol=0, atol=1e-10)


def test_probabilities_are_the_cosines():
    model = small().eval()
    nodes = torch.rand(2, 4, 128)
    centres = model.centres.detach().relu()
    cosine = torch.nn.functional.cosine_similarity(nodes, centres[None], dim=-1)
    torch.testing.assert_close(model._compare(nodes).sigmoid(), cosine)
    assert cosine.min() > 0.3
    with torch.no_grad():
        model.centres[0] = nodes[0, 0]
    extreme = model._compare(torch.stack([nodes[0], torch.zeros(4, 128)]))
    assert torch.isfinite(extreme).all()
    assert extreme[0, 0].item() == pytest.approx(np.log((1 - EPSILON) / EPSILON), rel=0.05)
    assert extreme[1, 0].item() == pytest.approx(np.log(EPSILON / (1 - EPSILON)), rel=0.05)


@pytest.mark.parametrize("stage", [1, 2])
def test_frames_are_independent_and_the_relations_are_those_of_stage_2(stage):
    model = small(stage)
    model.train()(frames(4, 4, 64))  # so that the norms' statistics are of some use
    assert_frames_are_independent(model, 64)
    output = model(frames(2, 3, 64))
    assert output.attention_BTMhw is None
    assert (output.relation_logits_BTMM4 is not None) == (stage == 2)
    if stage == 2:
        assert output.relation_logits_BTMM4.shape == (2, 3, 4, 4, 4)


@pytest.mark.parametrize("stage", [1, 2])
def test_every_parameter_learns_and_a_masked_au_does_no_harm(stage):
    model = small(stage)
    config = LossConfig(kind="asymmetric", relations=0.05 * (stage == 2))
    labels, mask = torch.eye(4).repeat(2, 2, 1)[:, :3], torch.ones(2, 3, 4, dtype=torch.bool)
    dead = unreached(model, 64, lambda output: sum(loss_terms(output, labels, mask, config, {}).values()))
    assert not {name for name in dead if not name.endswith(".bias")}, "a bias before a BatchNorm has no effect"
    assert all(p.grad is not None for p in model.parameters())
    assert_a_masked_au_is_left_out(model, 64, relations=config.relations)


def test_stage_2_starts_from_stage_1_and_other_aus_from_their_like():
    bp4d, disfa = AU_SETS["bp4d"], AU_SETS["disfa"]
    first, second = small(1, bp4d, 1), small(2, bp4d, 2)
    graph = second.graph.state_dict()["project.weight"].clone()
    second.start_from(first.state_dict(), bp4d)
    for name in ("extractor.trunk.conv1.weight", "extractor.places.linear.weight", "au_places.norm.weight", "centres"):
        assert torch.equal(second.state_dict()[name], first.state_dict()[name])
    assert torch.equal(second.graph.state_dict()["project.weight"], graph)
    other = small(1, disfa, 3, neighbours=3)
    other.start_from(first.state_dict(), bp4d, {9: 10, 25: 23, 26: 24})
    rows = [0, 1, 2, 3, 5, 6, 10, 11]
    assert torch.equal(other.centres, first.centres[rows])
    weights = [model.au_places.linear.weight.unflatten(0, (-1, 128)) for model in (other, first)]
    assert torch.equal(weights[0], weights[1][rows])
    with pytest.raises(ConfigError, match=r"AU09.*init\.au_map"):
        other.start_from(first.state_dict(), bp4d)
    with pytest.raises(DataError, match="another network"):
        second.start_from({}, bp4d)


@pytest.mark.parametrize(("stage", "relations"), [(1, 0.0), (2, 0.05), (1, 0.05), (2, 0.0)])
def test_relations_and_their_loss_go_together(stage, relations):
    recipe = Recipe(
        model={"name": "me_graphau", "stage": stage},
        input=InputSpec(),
        clip=ClipConfig(frames=1, stride=1),
        loss=LossConfig(relations=relations),
        phases=(PhaseConfig(name="all", epochs=1, batch=1, optimiser=OptimiserConfig(name="adamw", lr=1e-4)),),
    )
    if (stage == 2) == (relations > 0):
        check_recipe(recipe)
        return
    with pytest.raises(ConfigError, match=r"set loss\.relations > 0 for stage 2"):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stage": 3}, "stages 1 and 2, not 3"),
        ({"depth": 20}, "18, 34, 50, not 20"),
        ({"neighbours": 0}, "at least one neighbour"),
        ({"depth": 18, "weights": "absent.safetensors"}, "absent.safetensors are not here"),
    ],
)
def test_options_that_cannot_be_are_named(options, reason):
    with pytest.raises((ConfigError, DataError), match=reason):
        build_model("me_graphau", options, AUS, statistics())
