"""The demo preset: real topics, dealt so that nothing private is public and nothing leaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from lada_lab.worlds import demo
from lada_lab.worlds.demo import build_demo, site_kinds
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.medical import SPECIALITIES, diagnosis_topics
from lada_lab.worlds.multiple_choice import Topic
from lada_lab.worlds.sites import FederationData
from lada_lab.worlds.wordnet import DEFAULT_FOLDER, ENVIRONMENT_VARIABLE, read_nouns
from lada_lab.worlds.wordnet_topics import condition_topics
from lada_secure.data.records import PoolSample, Record, pool_hash
from lada_secure.errors import ParameterError

# Not imported here: it reads all of ICD-10-CM at once, and collecting tests should take no time.
if find_spec("simple_icd_10_cm") is None:
    pytest.skip("the demo's data need the packages of lada-lab", allow_module_level=True)
if not (Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER) / "data.noun").is_file():
    pytest.skip("WordNet is not installed", allow_module_level=True)


@pytest.fixture(scope="module", params=[3, 12])
def data(request: pytest.FixtureRequest) -> FederationData:
    return build_federation("demo", sites=request.param, seed=0)


def questions(records: tuple[Record, ...] | tuple[PoolSample, ...]) -> set[str]:
    return {one.question for one in records}


def sets_of(data: FederationData) -> dict[str, tuple[Record | PoolSample, ...]]:
    found: dict[str, tuple[Record | PoolSample, ...]] = {
        "pool": data.pool,
        "teacher": data.teacher,
    }
    for site, records in data.sites.items():
        found[f"{site} train"] = records.train
        found[f"{site} held out"] = records.held_out
    return found


def test_a_question_stands_for_one_code_or_synset() -> None:
    """What the hold-out tests below rely on."""
    topics: list[Topic] = [*condition_topics(read_nouns())]
    for chapters in SPECIALITIES:
        topics += diagnosis_topics(chapters)
    assert len({one.question for one in topics}) == len({one.key for one in topics}) == len(topics)


def test_no_code_or_synset_of_a_site_is_in_the_pool_or_the_teachers_material(
    data: FederationData,
) -> None:
    public = questions(data.pool) | questions(data.teacher)
    for records in data.sites.values():
        assert not (questions(records.train) | questions(records.held_out)) & public


def test_no_held_out_code_or_synset_is_in_any_sites_training_records(data: FederationData) -> None:
    trained = set().union(*(questions(one.train) for one in data.sites.values()))
    for records in data.sites.values():
        assert not questions(records.held_out) & trained


def test_pool_and_teachers_material_share_no_code_or_synset(data: FederationData) -> None:
    assert not questions(data.pool) & questions(data.teacher)


def test_sites_share_no_code_or_synset(data: FederationData) -> None:
    owners = Counter(
        question
        for records in data.sites.values()
        for question in questions(records.train) | questions(records.held_out)
    )
    assert set(owners.values()) == {1}


def test_within_every_set_an_option_is_right_one_time_in_four(data: FederationData) -> None:
    for name, records in sets_of(data).items():
        shown = Counter(choice for one in records for choice in one.choices)
        right = Counter(one.answer for one in records)
        assert all(4 * right[text] == shown[text] for text in shown), name


def test_the_right_option_stands_at_every_place_about_equally_often(data: FederationData) -> None:
    for name, records in sets_of(data).items():
        places = Counter(one.choices.index(one.answer) for one in records)
        # At most one question more per collection of topics that the set mixes.
        assert max(places.values()) - min(places.values()) <= len(SPECIALITIES) + 2, name


def test_ids_are_unique_and_units_have_one_to_four_records(data: FederationData) -> None:
    everything = [one for records in data.sites.values() for one in (*records.train,)]
    assert len({one.record_id for one in everything}) == len(everything)
    assert len({one.sample_id for one in data.pool}) == len(data.pool)
    for site, records in data.sites.items():
        sizes = Counter(one.unit for one in records.train)
        assert set(sizes.values()) == {1, 2, 3, 4}, site


def test_some_records_have_an_answer_only_and_most_have_their_reasoning(
    data: FederationData,
) -> None:
    for records in data.sites.values():
        without = sum(one.rationale is None for one in records.train)
        assert 0.1 < without / len(records.train) < 0.3
        assert all(one.rationale for one in records.held_out)
    assert all(one.rationale for one in data.teacher)


def test_three_sites_have_enough_to_train_and_to_measure() -> None:
    data = build_demo(sites=3, seed=1)
    assert list(data.sites) == ["hospital-a", "hospital-b", "bank-a"]
    for records in data.sites.values():
        assert len(records.held_out) >= 55
        assert len(records.train) >= 150
    assert len(data.pool) >= 200


def test_hospitals_have_other_chapters_and_banks_no_diagnoses() -> None:
    sites = build_demo(sites=5, seed=0).sites
    groups = {
        site: {one.answer for one in records.train if one.question.startswith("Diagnosis")}
        for site, records in sites.items()
    }
    hospitals = [found for site, found in groups.items() if site.startswith("hospital")]
    assert len(hospitals) == 3
    assert all(hospitals)
    assert not hospitals[0] & hospitals[1]
    assert not hospitals[1] & hospitals[2]
    assert not groups["bank-a"]
    assert not groups["bank-b"]


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (3, ["hospital-a", "hospital-b", "bank-a"]),
        (5, ["hospital-a", "hospital-b", "bank-a", "hospital-c", "bank-b"]),
    ],
)
def test_two_hospitals_and_a_bank_then_in_turn(sites: int, expected: list[str]) -> None:
    assert list(site_kinds(sites)) == expected


def test_another_seed_deals_other_records(data: FederationData) -> None:
    other = build_demo(sites=len(data.sites), seed=1)
    assert other.pool != data.pool
    assert other.sites["bank-a"].held_out != data.sites["bank-a"].held_out


@pytest.mark.slow
def test_the_data_do_not_depend_on_hash_randomisation() -> None:
    code = (
        "from lada_lab.worlds.federation import build_federation\n"
        "from lada_secure.data.records import pool_hash\n"
        "print(pool_hash(build_federation('demo', sites=3, seed=4).pool))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1] == pool_hash(build_demo(sites=3, seed=4).pool)


def test_a_missing_wordnet_is_said_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="wordnet-base"):
        build_demo(sites=3, seed=0, wordnet_dir=tmp_path)


def test_a_missing_icd_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(ParameterError, match="pip install simple-icd-10-cm"):
        demo.diagnosis_topics(SPECIALITIES[0])
