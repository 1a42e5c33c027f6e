"""Pools and sites that are not as usual: each works, or gives one clear error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lada_lab.arms.arms import ARMS
from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.guides import SiteReleases
from lada_lab.arms.party import Party
from lada_lab.arms.simulation import Laboratory, PreparedWorld
from lada_lab.arms.study import StudySettings
from lada_lab.worlds.study_data import BenchData
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError

Changed = Callable[[BenchData], BenchData]


def with_pool(*samples: PoolSample) -> Changed:
    return lambda data: replace(data, pool=samples, harmful=frozenset())


def opened(prepared: PreparedWorld, settings: StudySettings, change: Changed) -> Laboratory:
    return Laboratory.open(replace(prepared, data=change(prepared.data)), settings)


def studied(laboratory: Laboratory) -> Party:
    """One site's whole study without privacy."""
    releases = laboratory.releases(None)[0]
    party = Party.open(
        ARMS["lada-nonprivate"],
        laboratory.settings,
        releases,
        laboratory.coordinator,
        laboratory.lm,
        epsilon=8.0,
    )
    party.train(0, laboratory.coordinator.write(party.choose(0)))
    return party


def test_a_sample_id_that_comes_twice_is_refused_by_name(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    one = prepared.data.pool[3]
    with pytest.raises(ParameterError, match=f"'{one.sample_id}' comes 2 times"):
        opened(prepared, small_settings, lambda data: replace(data, pool=(*data.pool, one)))


def test_a_pool_without_gold_answers_is_refused(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    def without(data: BenchData) -> BenchData:
        return replace(data, pool=tuple(replace(one, answer="") for one in data.pool))

    with pytest.raises(ParameterError, match="no gold answer"):
        opened(prepared, small_settings, without)


def test_a_pool_of_one_question_over_and_over_is_one_cluster_and_works(
    prepared: PreparedWorld, small_settings: StudySettings, laboratory: Laboratory
) -> None:
    solved = prepared.data.pool[int(laboratory.coordinator.view.solved.argmax())]
    copies = [replace(solved, sample_id=f"copy-{number}") for number in range(20)]
    found = opened(prepared, small_settings, with_pool(*copies))
    assert found.coordinator.clusters.count == 1
    party = studied(found)
    assert party.reports[-1]["received"] == small_settings.quota


def test_fewer_samples_than_the_budget_are_all_that_is_asked_for(
    prepared: PreparedWorld, small_settings: StudySettings, laboratory: Laboratory
) -> None:
    solved = prepared.data.pool[int(laboratory.coordinator.view.solved.argmax())]
    party = studied(opened(prepared, small_settings, with_pool(solved)))
    assert party.reports[-1]["asked"] == 1


def test_a_pool_that_the_llm_cannot_solve_leaves_the_private_records(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    def wrong(data: BenchData) -> BenchData:
        return replace(data, pool=tuple(replace(one, answer="none") for one in data.pool))

    party = studied(opened(prepared, small_settings, wrong))
    assert party.reports[-1]["received"] == 0
    assert party.student.data == party.start(0).data


def test_a_question_longer_than_the_context_is_refused_with_both_lengths(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    def longer(data: BenchData) -> BenchData:
        first, *rest = data.pool
        return replace(data, pool=(replace(first, question="4" + "x" * 80), *rest))

    with pytest.raises(ParameterError, match=r"needs [0-9]+ tokens, at most 64"):
        opened(prepared, small_settings, longer)


@pytest.mark.parametrize("kind", ["one cluster", "no rationale"])
def test_a_site_whose_records_are_all_alike_works(
    kind: str, prepared: PreparedWorld, small_settings: StudySettings, laboratory: Laboratory
) -> None:
    site = prepared.data.sites[0]
    if kind == "one cluster":
        records = tuple(replace(one, question=site.train[0].question) for one in site.train)
    else:
        records = tuple(replace(one, rationale=None) for one in site.train)
    releases = SiteReleases.open(
        replace(site, train=records),
        small_settings,
        None,
        laboratory.lm,
        laboratory.coordinator,
        seed=1,
    )
    estimates = releases.statistics(0)
    if kind == "one cluster":
        assert sorted(estimates.shares)[-1] == 1.0
    party = Party.open(
        ARMS["lada-nonprivate"],
        small_settings,
        releases,
        laboratory.coordinator,
        laboratory.lm,
        epsilon=8.0,
    )
    assert len(party.choose(0)) <= small_settings.quota


def test_a_site_without_records_is_told_so(
    prepared: PreparedWorld, small_settings: StudySettings, laboratory: Laboratory
) -> None:
    with pytest.raises(ParameterError, match="expected at least one record"):
        SiteReleases.open(
            replace(prepared.data.sites[0], train=()),
            small_settings,
            None,
            laboratory.lm,
            laboratory.coordinator,
            seed=1,
        )


def test_clusters_are_made_from_the_public_pool_alone(
    prepared: PreparedWorld, small_settings: StudySettings, laboratory: Laboratory
) -> None:
    def fewer(data: BenchData) -> BenchData:
        return replace(data, sites=tuple(replace(one, train=one.train[:5]) for one in data.sites))

    llm = laboratory.coordinator.llm
    found = Coordinator.open(fewer(prepared.data), small_settings, llm)
    assert (found.clusters.centroids == laboratory.coordinator.clusters.centroids).all()
