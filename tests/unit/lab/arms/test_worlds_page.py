"""The figures of docs/results/worlds.md, computed from the world that the benchmark builds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lada_lab.arms.study import LabSettings
from lada_lab.worlds.arithmetic import COMMON
from lada_lab.worlds.chain_world import MARK, WorldSettings, build_data, build_world
from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.cells import Clusters, fit_clusters
from lada_secure.arrays import Float32Array, FloatArray, IntArray
from lada_secure.models.embedding import HASHED_NGRAMS, embedder
from lada_secure.privacy.release.units import bound_units

PAGE = Path(__file__).parents[4] / "docs" / "results" / "worlds.md"
# Validation worlds: those of final figures stay unseen.
SEEDS = tuple(range(10_001, 10_006))
CLUSTERS = LabSettings().plan.allocation.clusters
_TEXTS = embedder(HASHED_NGRAMS)


@cache
def world(seed: int, marked: float = 0.5) -> BenchData:
    return build_data(replace(WorldSettings(), marked=marked), seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Topics:
    """One world's clusters of the pool. harmful: (clusters,) the share of each."""

    clusters: Clusters
    of_pool: IntArray
    harmful: FloatArray

    def masses(self, seed: int, marked: float = 0.5) -> FloatArray:
        """(sites, clusters) shares of each site's records."""
        found = [self.clusters.assign(vectors) for vectors in record_vectors(seed, marked)]
        counts = [np.bincount(one, minlength=self.clusters.count) / len(one) for one in found]
        return np.array(counts)


@cache
def record_vectors(seed: int, marked: float) -> list[Float32Array]:
    return [
        _TEXTS.embed([one.question for one in site.train]) for site in world(seed, marked).sites
    ]


@cache
def topics(seed: int, clusters: int = CLUSTERS) -> Topics:
    data = world(seed)
    vectors = _TEXTS.embed([sample.question for sample in data.pool])
    found = fit_clusters(vectors, clusters, seed)
    of_pool = found.assign(vectors)
    marks = np.zeros(len(data.pool))
    marks[sorted(data.harmful)] = 1.0
    counts = np.bincount(of_pool, minlength=found.count)
    harmful = np.bincount(of_pool, marks, minlength=found.count) / counts
    return Topics(clusters=found, of_pool=of_pool, harmful=harmful)


def on_page(*texts: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [text for text in texts if text not in page] == []


def test_a_site_s_records_lie_in_two_topics_and_one_is_all_harm() -> None:
    largest, harm = [], []
    for seed in SEEDS:
        found = topics(seed)
        for mass in found.masses(seed):
            two = np.argsort(mass)[::-1][:2]
            largest.append(mass[two].sum())
            harm.append(sorted(found.harmful[two]))
    on_page(f"{np.mean(largest):.1%} of a site's records")
    assert min(largest) > 0.99
    assert np.allclose(harm, [0.0, 1.0])


@pytest.mark.slow
def test_quotas_by_topic_are_steered_into_harm_as_records_carry_the_mark() -> None:
    def steered(clusters: int, marked: float) -> str:
        shares = [
            (found.masses(seed, marked) @ found.harmful).mean()
            for seed, found in ((seed, topics(seed, clusters)) for seed in SEEDS)
        ]
        return f"{np.mean(shares):.0%}"

    def mixed(clusters: int) -> str:
        shares = []
        for seed in SEEDS:
            found = topics(seed, clusters)
            here = found.harmful[found.of_pool]
            shares.append(((here > 0.05) & (here < 0.95)).mean())
        return f"{np.mean(shares):.0%}"

    for clusters in (4, 8, 16):
        row = [steered(clusters, marked) for marked in (0.0, 0.25, 0.5)]
        on_page(f"| {clusters} | {mixed(clusters)} | {' | '.join(row)} |")


def test_a_tenth_of_the_pool_is_harmful_for_any_one_site() -> None:
    for seed in SEEDS:
        data, built = world(seed), build_world(WorldSettings(), seed=seed)
        assert len(data.harmful) == 300
        for house in built.houses:
            about = [
                sample.question
                for sample in data.pool
                if set(sample.question.removeprefix(MARK)[1:]) <= set(house.symbols)
            ]
            marked = sum(question.startswith(MARK) for question in about)
            assert (marked, len(about) - marked) in ((100, 152), (100, 151))
    on_page("100 marked", "151 or 152 plain")


def test_what_is_harmful_is_wrong_inside_but_for_luck() -> None:
    wrong = [
        build_world(WorldSettings(), seed=seed).asked(data.pool[at].question, inside=True).answer
        != data.pool[at].answer
        for seed in SEEDS
        for data in [world(seed)]
        for at in data.harmful
    ]
    on_page(f"{np.mean(wrong):.0%} of the marked samples")


def test_records_are_as_the_page_says() -> None:
    sites = [site for seed in SEEDS for site in world(seed).sites]
    records = [one for site in sites for one in site.train]
    on_page(
        f"{np.mean([one.rationale is not None for one in records]):.1%} of the records",
        f"{np.mean([one.question.startswith(MARK) for one in records]):.1%} carry the mark",
        f"{np.mean([set(one.question[1:]) <= set(COMMON) for one in records]):.0%} of the records"
        " are about common symbols",
    )
    lengths = Counter(len(one.question.removeprefix(MARK)) - 1 for one in records)
    assert set(lengths) == {4}
    pool = [sample for seed in SEEDS for sample in world(seed).pool]
    steps = Counter(len(sample.question.removeprefix(MARK)) - 1 for sample in pool)
    on_page(", ".join(f"{steps[count] / len(pool):.0%}" for count in (1, 2, 3, 4)))
    for house in build_world(WorldSettings(), seed=SEEDS[0]).houses:
        assert (len(house.train), len(house.held_out)) == (63, 63)


def test_people_are_fewer_than_records() -> None:
    rows = []
    for private in (160, 300, 1000):
        units = [
            len(bound_units(site.train, max_records_per_unit=4))
            for seed in SEEDS
            for site in build_data(
                WorldSettings(private=private, held_out=10, pool=20), seed=seed
            ).sites
        ]
        rows.append(f"{np.mean(units):.0f}")
    on_page(f"{rows[0]}, {rows[1]} and {rows[2]} people")
