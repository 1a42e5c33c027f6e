"""Clusters, difficulty bins, the cell grid and the coordinator's private matrix."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from lada_secure.allocation.cells import (
    CellGrid,
    Clusters,
    difficulty_bins,
    fit_clusters,
    parse_clusters,
    pool_features,
)
from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError, PeerError


def three_groups(sizes: tuple[int, int, int] = (30, 20, 10)) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(5)
    centres = np.eye(8)[:3]
    rows = np.repeat(centres, sizes, axis=0) + 0.05 * generator.standard_normal((sum(sizes), 8))
    unit: npt.NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def test_k_means_finds_separate_groups_and_numbers_them_by_size() -> None:
    points = three_groups()
    labels = fit_clusters(points, 3, seed=0).assign(points)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], [30, 20, 10]))


def test_the_same_seed_gives_the_same_clusters() -> None:
    points = np.random.default_rng(1).standard_normal((200, 6))
    first, second = fit_clusters(points, 7, seed=3), fit_clusters(points, 7, seed=3)
    np.testing.assert_array_equal(first.centroids, second.centroids)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("distinct", "wanted", "got"),
    [
        pytest.param(1, 4, 1, id="identical texts form one cluster"),
        pytest.param(3, 8, 3, id="fewer distinct texts than clusters gives one cluster each"),
        pytest.param(9, 1, 1, id="one wanted cluster holds everything"),
    ],
)
def test_clusters_are_never_empty(distinct: int, wanted: int, got: int) -> None:
    points = np.tile(np.random.default_rng(2).standard_normal((distinct, 4)), (5, 1))
    clusters = fit_clusters(points, wanted, seed=0)
    assert clusters.count == got
    assert set(clusters.assign(points).tolist()) == set(range(got))


def test_duplicates_that_leave_a_start_empty_are_dropped() -> None:
    generator = np.random.default_rng(4)
    points = np.concatenate([np.tile(np.eye(4)[:1], (500, 1)), generator.standard_normal((6, 4))])
    clusters = fit_clusters(points, 6, seed=1)
    sizes = np.bincount(clusters.assign(points), minlength=clusters.count)
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()


def test_clusters_survive_a_plan_and_then_assign_alike() -> None:
    points = np.random.default_rng(6).standard_normal((300, 16))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    clusters = fit_clusters(points, 12, seed=0)
    again = parse_clusters(json.loads(canonical_json(clusters.to_json())))
    np.testing.assert_array_equal(again.centroids, clusters.centroids)
    np.testing.assert_array_equal(again.assign(points), clusters.assign(points))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([], id="not an object"),
        pytest.param({"version": 1}, id="a missing key"),
        pytest.param({"version": 2, "centroids": [[0.5]]}, id="another version"),
        pytest.param({"version": True, "centroids": [[0.5]]}, id="true for the version"),
        pytest.param({"version": 1, "centroids": []}, id="no centroid"),
        pytest.param({"version": 1, "centroids": "ab"}, id="text for the list"),
        pytest.param({"version": 1, "centroids": [[0.5], [0.5, 0.5]]}, id="ragged rows"),
        pytest.param({"version": 1, "centroids": [[]]}, id="an empty row"),
        pytest.param({"version": 1, "centroids": [["x"]]}, id="text for a number"),
        pytest.param({"version": 1, "centroids": [[True]]}, id="true for a number"),
        pytest.param({"version": 1, "centroids": [[1.5]]}, id="a number beyond 1"),
        pytest.param({"version": 1, "centroids": [[0.12345678]]}, id="too many decimals"),
        pytest.param({"version": 1, "centroids": [[0.5]] * 257}, id="too many rows"),
        pytest.param({"version": 1, "centroids": [[0.5]], "x": 1}, id="an unknown key"),
    ],
)
def test_published_clusters_are_refused_for(value: Json) -> None:
    with pytest.raises(PeerError):
        parse_clusters(value)


def test_assignment_matches_a_slow_search() -> None:
    generator = np.random.default_rng(7)
    clusters = Clusters(centroids=generator.standard_normal((5, 3)))
    points = generator.standard_normal((50, 3))
    slow = [
        min(range(5), key=lambda c, p=point: float(((p - clusters.centroids[c]) ** 2).sum()))  # type: ignore[misc]
        for point in points
    ]
    assert clusters.assign(points).tolist() == slow


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ParameterError, match="the embedder differs"):
        Clusters(centroids=np.eye(3)).assign(np.eye(4))


def test_membership_is_a_share_that_favours_the_nearest_cluster() -> None:
    points = three_groups()
    clusters = fit_clusters(points, 3, seed=0)
    shares = clusters.membership(points)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_array_equal(shares.argmax(axis=1), clusters.assign(points))
    assert shares.max(axis=1).min() > 0.99


def test_clusters_cannot_be_written_to() -> None:
    clusters = Clusters(centroids=np.eye(2))
    with pytest.raises(ValueError, match="read-only"):
        clusters.centroids[0, 0] = 5.0


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 7])
def test_bins_of_distinct_losses_are_even_and_in_order(bins: int) -> None:
    losses = np.random.default_rng(8).permutation(np.arange(101.0))
    assigned = difficulty_bins(losses, bins)
    counts = np.bincount(assigned, minlength=bins)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(assigned[np.argsort(losses)]) >= 0).all()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        pytest.param([2.0, 2.0, 2.0], [1, 1, 1], id="equal losses share one bin"),
        pytest.param([1.0, np.inf, np.inf], [0, 1, 1], id="impossible paths are the hardest"),
        pytest.param([1.0, 1.0, 1.0, 9.0], [0, 0, 0, 1], id="many easy samples share the first"),
    ],
)
def test_bins_of_special_losses(losses: list[float], expected: list[int]) -> None:
    assert difficulty_bins(losses, 2).tolist() == expected


@pytest.mark.parametrize(
    ("losses", "bins"), [([np.nan], 2), ([], 2), ([1.0], 0), ([1.0], 65), ([[1.0]], 2)]
)
def test_bins_refuse_bad_input(losses: list[float], bins: int) -> None:
    with pytest.raises(ParameterError, match="difficulty"):
        difficulty_bins(losses, bins)


def test_cell_numbers_and_their_parts_agree() -> None:
    grid = CellGrid(clusters=3, bins=4)
    cells = np.arange(grid.cells)
    np.testing.assert_array_equal(grid.index(grid.clusters_of_cells(), grid.bins_of_cells()), cells)
    assert grid.index([2], [1]).tolist() == [9]
    assert grid.spread([5.0, 6.0, 7.0]).tolist() == [5.0] * 4 + [6.0] * 4 + [7.0] * 4


@pytest.mark.parametrize(("clusters", "bins"), [([3], [0]), ([0], [4]), ([-1], [0]), ([0], [0, 1])])
def test_cells_outside_the_grid_are_refused(clusters: list[int], bins: list[int]) -> None:
    with pytest.raises(ParameterError):
        CellGrid(clusters=3, bins=4).index(clusters, bins)


def test_pool_matrix_entries_are_membership_times_confidence_in_the_own_bin() -> None:
    grid = CellGrid(clusters=2, bins=3)
    matrix = pool_features(
        grid,
        membership=[[0.75, 0.25], [0.0, 1.0]],
        difficulty=[2, 0],
        confidence=[0.5, 1.0],
    )
    expected = np.zeros((2, 6))
    expected[0, [2, 5]] = [0.375, 0.125]
    expected[1, 3] = 1.0
    np.testing.assert_allclose(matrix, expected)


def test_scores_stay_within_one_for_utilities_within_one() -> None:
    generator = np.random.default_rng(9)
    grid = CellGrid(clusters=6, bins=4)
    matrix = pool_features(
        grid,
        membership=generator.dirichlet(np.ones(6), size=500),
        difficulty=generator.integers(0, 4, 500),
        confidence=generator.uniform(0, 1, 500),
    )
    assert matrix.min() >= 0.0
    assert matrix.max() <= 1.0
    for utilities in (np.ones(24), -np.ones(24), generator.choice([-1.0, 1.0], 24)):
        assert np.abs(matrix @ utilities).max() <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("membership", "difficulty", "confidence"),
    [
        pytest.param([[0.5, 0.4]], [0], [1.0], id="rows that do not sum to one"),
        pytest.param([[1.5, -0.5]], [0], [1.0], id="negative membership"),
        pytest.param([[0.5, 0.5]], [3], [1.0], id="a bin outside the grid"),
        pytest.param([[0.5, 0.5]], [0], [1.1], id="confidence above one"),
        pytest.param([[0.5, 0.5]], [0], [np.nan], id="confidence that is no number"),
        pytest.param([[0.5, 0.5]], [0.0], [1.0], id="bins that are no whole numbers"),
    ],
)
def test_pool_matrix_refuses(
    membership: list[list[float]], difficulty: list[int], confidence: list[float]
) -> None:
    with pytest.raises(ParameterError):
        pool_features(
            CellGrid(clusters=2, bins=3),
            membership=membership,
            difficulty=difficulty,
            confidence=confidence,
        )
