"""models/_stral_graph.py: the relation graph by hand, and against plain code."""

import numpy as np
import pytest
from stral_models import PEARSON, connect

from aupipe.models.stral import relation_graph
from aupipe.schema import ConfigError, DataError

# The relation graph


def test_graph_by_hand():
    graph = relation_graph(PEARSON)
    # 1–2 and 1–4 are edges; AU1 has two neighbours; AU12 has none.
    assert graph.adjacency_MM.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    third, half = 1 / 3, 1 / 2
    normalised = [[third, half, half, 0], [third, half, 0, 0], [third, 0, half, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(graph.normalised_MM, normalised)
    assert graph.centre == 0
    assert graph.hops_M.tolist() == [0, 1, 1, np.inf]
    root, centripetal, centrifugal = graph.partitions_3MM
    np.testing.assert_allclose(root, np.diag([third, half, half, 1]))
    np.testing.assert_allclose(centripetal, [[0, 0, 0, 0], [third, 0, 0, 0], [third, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(centrifugal, [[0, half, half, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_threshold_is_inclusive_and_undefined_correlations_are_no_edges():
    pearson = np.array([[1, 0.15, np.nan], [0.15, 1, np.nextafter(0.15, 0)], [np.nan, np.nextafter(0.15, 0), 1]])
    assert np.argwhere(np.triu(relation_graph(pearson).adjacency_MM, 1)).tolist() == [[0, 1]]
    assert np.argwhere(np.triu(relation_graph(pearson, 0.1).adjacency_MM, 1)).tolist() == [[0, 1], [1, 2]]
    nothing = relation_graph(np.full((3, 3), np.nan))
    np.testing.assert_array_equal(nothing.partitions_3MM, [np.eye(3), np.zeros((3, 3)), np.zeros((3, 3))])
    assert nothing.centre == 0
    assert relation_graph([[np.nan]]).normalised_MM.tolist() == [[1]]


def test_a_component_without_the_centre_is_centripetal_both_ways():
    graph = relation_graph(connect(5, (0, 1), (0, 2), (3, 4)))
    assert graph.hops_M.tolist() == [0, 1, 1, np.inf, np.inf]
    assert graph.partitions_3MM[1, 3, 4] == graph.partitions_3MM[1, 4, 3] == 0.5
    assert not graph.partitions_3MM[2, 3:].any()


def test_centre_and_distance_can_be_overruled():
    chain = connect(4, (0, 1), (1, 2), (2, 3))
    assert relation_graph(chain).centre == 1, "of equals the first"
    assert relation_graph(chain).hops_M.tolist() == [1, 0, 1, 2]
    assert relation_graph(chain, centre=3).hops_M.tolist() == [3, 2, 1, 0]
    assert relation_graph(chain, centre=3, max_hop=1).hops_M.tolist() == [np.inf, np.inf, 1, 0]
    with pytest.raises(ConfigError, match="position 4"):
        relation_graph(chain, centre=4)


@pytest.mark.parametrize("shape", [(3, 2), (3,), (0, 0)])
def test_correlations_that_are_no_square_matrix_are_refused(shape):
    with pytest.raises(DataError, match="square matrix"):
        relation_graph(np.zeros(shape))


def spatial_strategy(adjacency, hops):
    """ST-GCN's "spatial configuration" (Yan et al. 2018, §3.3), neighbour by neighbour, for edges into i from j."""
    degree = adjacency.sum(0)
    parts = np.zeros((3, len(hops), len(hops)))
    for j, i in np.argwhere(adjacency):
        part = 0 if i == j else 1 if hops[j] >= hops[i] else 2
        parts[part, j, i] = 1 / degree[i]
    return parts


def test_partitions_of_random_graphs_are_those_of_st_gcn():
    rng = np.random.default_rng(0)
    disconnected = 0
    for _ in range(300):
        M = int(rng.integers(1, 13))
        pearson = rng.uniform(-1, 1, (M, M)) - 0.35
        graph = relation_graph(np.triu(pearson, 1) + np.triu(pearson, 1).T)
        hops = np.full(M, np.inf)
        power = np.eye(M)
        for distance in range(M):  # walks of this length from the centre
            hops[(power[graph.centre] > 0) & np.isinf(hops)] = distance
            power = power @ graph.adjacency_MM
        np.testing.assert_array_equal(graph.hops_M, hops)
        disconnected += np.isinf(hops).any()
        neighbours = graph.adjacency_MM.sum(0) - 1
        assert graph.centre == np.flatnonzero(neighbours == neighbours.max())[0]
        np.testing.assert_allclose(graph.normalised_MM.sum(0), 1)
        np.testing.assert_allclose(graph.partitions_3MM.sum(0), graph.normalised_MM)
        np.testing.assert_allclose(graph.partitions_3MM, spatial_strategy(graph.adjacency_MM, hops))
    assert 30 < disconnected < 270
