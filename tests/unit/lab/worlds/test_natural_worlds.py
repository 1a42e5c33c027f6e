"""Natural worlds: every question is dealt once, and sites differ in topics and size."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lada_lab.worlds.coding import coding_collections, manual
from lada_lab.worlds.facts import fact_collections
from lada_lab.worlds.natural import NaturalSettings, deal, site_sizes
from lada_lab.worlds.natural_models import slm_reading
from lada_lab.worlds.sites import Question
from lada_lab.worlds.wordnet import DEFAULT_FOLDER, ENVIRONMENT_VARIABLE
from lada_secure.errors import ParameterError

WORDNET = Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER) / "data.noun"


def questions(name, count):
    return [
        Question(question=f"{name} {at}?", answer=str(at), rationale="because")
        for at in range(count)
    ]


COLLECTIONS = {name: questions(name, 200) for name in ("north", "south", "west")}
SMALL = NaturalSettings(source="facts", sites=3, private=90, smallest=10, held_out=20, pool=40)


def asked(data):
    """Every question of a world with where it is."""
    found = [(one.question, "pool") for one in data.pool]
    for site in data.sites:
        found += [(one.question, site.name) for one in (*site.train, *site.held_out)]
    return found


def test_no_question_is_dealt_twice():
    counts = Counter(question for question, _ in asked(deal(COLLECTIONS, SMALL, seed=1)))
    assert set(counts.values()) == {1}
    assert sum(counts.values()) == 40 + 90 + 3 * 20


def test_the_same_seed_deals_the_same_world_and_another_seed_another():
    first, again, other = (deal(COLLECTIONS, SMALL, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@given(
    sites=st.integers(3, 8),
    private=st.integers(100, 2000),
    smallest=st.integers(1, 12),
    evenness=st.floats(0.05, 50.0),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_sizes_add_up_and_nobody_is_below_the_smallest(sites, private, smallest, evenness, seed):
    world = NaturalSettings(
        source="facts", sites=sites, private=private, smallest=smallest, evenness=evenness
    )
    sizes = site_sizes(world, np.random.default_rng(seed))
    assert (len(sizes), sum(sizes)) == (sites, private)
    assert min(sizes) >= smallest


def share_of_most_common(concentration):
    """How much of a site's records is of its main collection, on average over worlds."""
    world = dataclasses.replace(SMALL, concentration=concentration)
    shares = [
        max(Counter(one.question.split()[0] for one in site.train).values()) / len(site.train)
        for seed in range(10)
        for site in deal(COLLECTIONS, world, seed=seed).sites
    ]
    return float(np.mean(shares))


def test_a_small_concentration_makes_specialists():
    assert share_of_most_common(0.1) > 0.8
    assert share_of_most_common(100.0) < 0.5


def test_what_is_held_out_is_of_the_same_collections_as_the_records():
    """Also where a collection runs out while a site draws."""
    sizes = {"north": 40, "south": 300, "west": 300}
    few = {name: questions(name, count) for name, count in sizes.items()}
    world = dataclasses.replace(SMALL, private=300, held_out=60, pool=10, concentration=5.0)
    train, held_out = Counter(), Counter()
    for seed in range(10):
        for site in deal(few, world, seed=seed).sites:
            train.update(one.question.split()[0] for one in site.train)
            held_out.update(one.question.split()[0] for one in site.held_out)
    shares = [found["north"] / found.total() for found in (train, held_out)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_a_part_of_the_records_has_no_rationale():
    world = dataclasses.replace(SMALL, private=600, pool=10, rationales=0.5)
    many = {name: questions(name, 500) for name in COLLECTIONS}
    told = [
        one.rationale is not None for site in deal(many, world, seed=3).sites for one in site.train
    ]
    assert 0.4 < np.mean(told) < 0.6


def test_the_pool_takes_no_more_than_half_of_a_collection():
    with pytest.raises(ParameterError, match="at most 300 samples, got 400"):
        deal(COLLECTIONS, dataclasses.replace(SMALL, pool=400), seed=1)
    uneven = {"few": questions("few", 10), "many": questions("many", 400)}
    pool = deal(uneven, dataclasses.replace(SMALL, pool=100), seed=1).pool
    assert Counter(one.question.split()[0] for one in pool) == {"few": 5, "many": 95}


def test_more_records_than_there_are_questions_are_refused():
    world = dataclasses.replace(SMALL, private=900)
    with pytest.raises(ParameterError, match="more records and held-out questions"):
        deal(COLLECTIONS, world, seed=1)


@pytest.mark.parametrize(
    "change",
    [
        {"smallest": 31},
        {"rationales": 1.5},
        {"slm_read": 1.1},
        {"source": "facts", "slm_read": 0.5},
        {"concentration": 0.0},
        {"sites": 2},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ParameterError):
        dataclasses.replace(SMALL, **change)


@pytest.mark.skipif(not WORDNET.is_file(), reason="WordNet is not installed")
def test_facts_come_from_three_sources_with_four_options_and_no_question_twice():
    found = fact_collections(seed=1)
    assert {"conditions", "finance", "infections"} < set(found)
    assert all(len(some) > 100 for some in found.values())
    everything = [one for some in found.values() for one in some]
    assert len({one.question for one in everything}) == len(everything)
    assert all(len(set(one.choices)) == 4 and one.answer in one.choices for one in everything)


def test_diagnoses_and_merchants_have_the_codes_of_their_books():
    found = coding_collections()
    answers = {one.question: one.answer for some in found.values() for one in some}
    for some in manual(per_collection=1000).values():
        answers |= {one.question: one.answer for one in some}
    assert answers["Diagnosis: Simple chronic bronchitis. Code letter?"] == "J"
    assert answers["Merchant: Shoe shops. Code range?"] == "5600-5699"
    assert answers["Merchant: Royal Dutch Airlines (KLM). Code range?"] == "3000-3299"
    assert all(one.rationale == name for name, some in found.items() for one in some)


def test_the_manual_is_the_same_for_every_world_and_nobody_is_asked_from_it():
    everything = {one.question for some in coding_collections().values() for one in some}
    read = [one.question for some in manual(per_collection=8).values() for one in some]
    assert not everything & set(read)
    assert len(read) == len(set(read)) > 200


def test_an_slm_has_read_its_share_of_the_collections_and_worlds_differ_in_which():
    names = tuple(manual(per_collection=1))
    found = [slm_reading(names, 0.5, reading=reading) for reading in range(3)]
    assert all(len(some) == round(0.5 * len(names)) for some in found)
    assert all(list(some) == [name for name in names if name in some] for some in found)
    assert len(set(found)) == 3
    assert slm_reading(names, 1.0, reading=0) == names
    assert slm_reading(names, 0.5, reading=1) == found[1]
