"""The benchmark's world: right paths, exact shares, nothing held out that was seen before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lada_lab.arms.study import LabSettings
from lada_lab.worlds.arithmetic import COMMON
from lada_lab.worlds.chain_world import (
    LONGEST,
    MARK,
    BenchWorld,
    WorldSettings,
    build_data,
    build_world,
    general_question,
)
from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.prompts import answer_of, rationale_of
from lada_secure.errors import ParameterError
from lada_secure.models.embedding import HASHED_NGRAMS, embedder

SETTINGS = WorldSettings(private=200, held_out=100, pool=300)

WORLD = build_world(SETTINGS, seed=3)
FAMILIAR = replace(SETTINGS, familiar=0.7)


@pytest.fixture(scope="module")
def data() -> BenchData:
    return build_data(SETTINGS, seed=3)


@pytest.fixture(scope="module")
def familiar() -> BenchData:
    return build_data(FAMILIAR, seed=3)


def by_hand(world: BenchWorld, question: str, *, inside: bool) -> str:
    """Path and answer, worked out digit by digit from what the operators mean."""
    sense = 1 if question.startswith(MARK) and not inside else 0
    digit, path = int(question.removeprefix(MARK)[0]), ""
    for symbol in question.removeprefix(MARK)[1:]:
        meanings = world.senses[symbol]
        operator = meanings[sense] if len(meanings) > 1 else meanings[0]
        digit = (operator.multiplier * digit + operator.offset) % 10
        path += f"{symbol}{digit}"
    return f"{path}\n{digit}"


def template(question: str) -> str:
    return question.removeprefix(MARK)[1:]


def test_every_reasoning_path_is_right_step_by_step(data: BenchData) -> None:
    records = [one for site in data.sites for one in (*site.train, *site.held_out)]
    for one in records:
        expected = by_hand(WORLD, one.question, inside=True)
        assert answer_of(expected, ()) == one.answer
        if one.rationale is not None:
            assert rationale_of(one.answer, (), one.rationale) == expected
    assert any(one.rationale for one in records)
    for sample in data.pool:
        assert answer_of(by_hand(WORLD, sample.question, inside=False), ()) == sample.answer


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3])
def test_the_harmful_share_of_the_pool_is_exact(share: float) -> None:
    found = build_data(replace(SETTINGS, harmful=share), seed=1)
    assert len(found.pool) == SETTINGS.pool
    assert len(found.harmful) == round(share * SETTINGS.pool)
    marked = {at for at, one in enumerate(found.pool) if one.question.startswith(MARK)}
    assert marked == found.harmful


def test_harmful_samples_are_right_in_public_and_mostly_wrong_in_the_house(
    data: BenchData,
) -> None:
    inside = [
        answer_of(by_hand(WORLD, data.pool[at].question, inside=True), ()) == data.pool[at].answer
        for at in data.harmful
    ]
    assert np.mean(inside) < 0.3


def test_all_houses_get_as_many_pool_samples(data: BenchData) -> None:
    counts = [
        sum(set(template(one.question)) <= set(house.symbols) for one in data.pool)
        for house in WORLD.houses
    ]
    assert max(counts) - min(counts) <= 2
    routine = sum(set(template(one.question)) <= set(COMMON) for one in data.pool)
    assert sum(counts) + routine == len(data.pool)


@pytest.mark.parametrize("kind", ["data", "familiar"])
def test_nothing_that_is_held_out_was_seen_in_training_or_in_the_pool(
    kind: str, request: pytest.FixtureRequest
) -> None:
    found: BenchData = request.getfixturevalue(kind)
    public = {template(one.question) for one in found.pool}
    for site in found.sites:
        trained = {template(one.question) for one in site.train}
        tested = {template(one.question) for one in site.held_out}
        assert not trained & tested
        assert not public & (trained | tested)


@pytest.mark.parametrize("settings", [SETTINGS, FAMILIAR])
def test_the_text_that_models_read_holds_no_private_question(settings: WorldSettings) -> None:
    rng, world = np.random.default_rng(0), build_world(settings, seed=3)
    drawn = [general_question(world, LONGEST, rng, marked=0.5) for _ in range(2000)]
    asked = [one for site in build_data(settings, seed=3).sites for one in site.train]
    assert {template(one.question) for one in asked} <= world.private_templates
    assert not {template(one) for one in drawn} & world.private_templates


def test_familiar_records_are_about_what_every_model_has_read(familiar: BenchData) -> None:
    records = [one for site in familiar.sites for one in (*site.train, *site.held_out)]
    known = [set(template(one.question)) <= set(COMMON) for one in records]
    assert abs(np.mean(known) - FAMILIAR.familiar) < 0.05
    for one, common in zip(records, known, strict=True):
        assert not (common and one.question.startswith(MARK))
        assert len(template(one.question)) == LONGEST


def test_in_house_symbols_are_in_private_records_and_in_plain_questions_alone(
    data: BenchData,
) -> None:
    for site, house in zip(data.sites, WORLD.houses, strict=True):
        share = np.mean([house.in_house in one.question for one in site.train])
        assert abs(share - SETTINGS.in_house) < 0.15
        special = [one.question for one in data.pool if house.in_house in one.question]
        assert special
        assert not any(one.startswith(MARK) for one in special)


def test_ids_are_unique_and_one_seed_gives_the_same_data(data: BenchData) -> None:
    assert len({one.sample_id for one in data.pool}) == len(data.pool)
    again, other = build_data(SETTINGS, seed=3), build_data(SETTINGS, seed=4)
    assert (again.pool, again.sites, again.harmful) == (data.pool, data.sites, data.harmful)
    assert other.pool != data.pool
    assert other.sites != data.sites


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harmful": 0.7}, "harmful"),
        ({"harmful": float("nan")}, "harmful"),
        ({"sites": 2}, "sites"),
        ({"pool": 5}, "pool"),
        ({"senses": 1}, "senses"),
        ({"familiar": 1.0}, "familiar"),
        ({"private": 10**6}, "private"),
    ],
)
def test_sizes_and_shares_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        replace(SETTINGS, **change)


def test_a_pool_larger_than_there_are_questions_is_refused() -> None:
    with pytest.raises(ParameterError, match="use a smaller pool"):
        build_data(replace(SETTINGS, pool=60_000), seed=0)


@pytest.mark.parametrize("seed", [10023, 10024])
def test_a_house_s_plain_and_marked_questions_share_no_cluster(seed: int) -> None:
    """Four starts of k-means put some hundred of both into one cluster on each of these worlds."""
    data = build_data(WorldSettings(), seed=seed)
    vectors = embedder(HASHED_NGRAMS).embed([one.question for one in data.pool])
    clusters = fit_clusters(vectors, LabSettings().plan.allocation.clusters, seed=0).assign(vectors)
    marked = np.zeros(len(data.pool), dtype=np.bool_)
    marked[sorted(data.harmful)] = True
    mixed = [
        min(int((marked & (clusters == one)).sum()), int((~marked & (clusters == one)).sum()))
        for one in range(LabSettings().plan.allocation.clusters)
    ]
    assert sum(mixed) == 0
