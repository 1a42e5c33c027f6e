"""The world of wards: right paths, harm by sense alone, nothing held out that was seen before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lada_lab.arms import simulation
from lada_lab.arms.arms import arms_named
from lada_lab.arms.bench_plan import BenchPlan
from lada_lab.arms.presets import PRESETS, bench_settings
from lada_lab.arms.run import run_allocation
from lada_lab.arms.run_file import Runs
from lada_lab.worlds.study_data import BenchData
from lada_lab.worlds.wards import (
    LONGEST,
    MARK,
    WARDS,
    WardSettings,
    build_ward_data,
    build_ward_world,
    public_text,
)
from lada_secure.errors import ParameterError

SETTINGS = WardSettings(private=120, held_out=60, pool=150)
WORLD = build_ward_world(SETTINGS, seed=3)
WARD_OF = {condition: ward for ward, conditions in WARDS.items() for condition in conditions}


@pytest.fixture(scope="module")
def data() -> BenchData:
    return build_ward_data(SETTINGS, seed=3)


def template(question: str) -> tuple[str, ...]:
    """The shorthand of a note such as `Woman, 54: BX then TQ. Wards?`."""
    listed = question.removesuffix(". Wards?").split(": ")[1]
    return tuple(listed.split(" then "))


def by_hand(terms: tuple[str, ...], sense: int) -> tuple[str, str]:
    conditions = [WORLD.senses[term][sense % len(WORLD.senses[term])][0] for term in terms]
    return (
        ", ".join(f"{term} {condition}" for term, condition in zip(terms, conditions, strict=True)),
        ", ".join(WARD_OF[condition] for condition in conditions),
    )


def test_private_records_have_the_house_s_sense_with_and_without_the_mark(data: BenchData) -> None:
    for site in data.sites:
        for one in site.train + site.held_out:
            assert (one.rationale, one.answer) == by_hand(template(one.question), 0)
        marked = np.mean([one.question.startswith(MARK) for one in site.train])
        assert 0.3 < marked < 0.7


def test_marked_pool_samples_have_the_street_s_sense_and_are_the_harmful_ones(
    data: BenchData,
) -> None:
    for number, one in enumerate(data.pool):
        marked = one.question.startswith(MARK)
        assert (number in data.harmful) == marked
        assert one.answer == by_hand(template(one.question), 1 if marked else 0)[1]
    assert len(data.harmful) == round(SETTINGS.harmful * SETTINGS.pool)
    # Two senses of one term never share a ward: a harmful answer is wrong inside the house.
    assert all(
        by_hand(template(data.pool[at].question), 0)[1] != data.pool[at].answer
        for at in data.harmful
    )


def test_nothing_that_is_held_out_was_seen_in_training_in_the_pool_or_in_public_text(
    data: BenchData,
) -> None:
    rng = np.random.default_rng(0)
    seen = {template(one.question) for one in data.pool}
    for reader in ("slm", "llm"):
        seen |= {template(one.question) for one in public_text(WORLD, reader, 500, rng, marked=0.5)}
    private = {template(one.question) for site in data.sites for one in site.train}
    held_out = {template(one.question) for site in data.sites for one in site.held_out}
    assert not held_out & (private | seen)
    assert not private & seen
    assert all(len(one) == LONGEST for one in held_out)


def test_the_llm_reads_the_public_s_senses_and_the_slm_all_of_them() -> None:
    rng = np.random.default_rng(1)
    for text in public_text(WORLD, "llm", 200, rng, marked=0.5):
        sense = 1 if text.question.startswith(MARK) else 0
        assert (text.rationale, text.answer) == by_hand(template(text.question), sense)
    terms = {term for house in WORLD.hospitals for term in house.shorthand}
    read = {
        step
        for text in public_text(WORLD, "slm", 3000, rng, marked=0.5)
        for step in str(text.rationale).split(", ")
    }
    for term in terms:
        assert {f"{term} {condition}" for condition, _ in WORLD.senses[term]} <= read


def test_terms_are_different_and_one_seed_gives_the_same_data(data: BenchData) -> None:
    terms = [*WORLD.common, *(term for house in WORLD.hospitals for term in house.shorthand)]
    assert len(set(terms)) == len(terms)
    assert build_ward_data(SETTINGS, seed=3) == data
    assert build_ward_data(SETTINGS, seed=4) != data
    assert len({one.question for one in data.pool}) == len(data.pool)


def test_twelve_sites_have_shorthand_enough() -> None:
    world = build_ward_world(WardSettings(sites=12), seed=0)
    assert len({term for house in world.hospitals for term in house.shorthand}) == 60


@pytest.mark.parametrize(
    "changes", [{"harmful": 0.7}, {"senses": 4}, {"pool": 5}, {"sites": 2}, {"rationales": 1.1}]
)
def test_sizes_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        WardSettings(**changes)


def test_the_preset_takes_sizes_and_changes() -> None:
    found = bench_settings("smollm2", harmful=0.1, held_out=None, changes=["world.pool=50"])
    assert (found.world.harmful, found.world.pool) == (0.1, 50)
    assert found.world.held_out == PRESETS["smollm2"].world.held_out
    assert bench_settings("smollm2", harmful=0.1, held_out=20).world.held_out == 20


@pytest.mark.slow
def test_a_very_small_study_runs_on_real_weights(tmp_path: Path) -> None:
    """Two rounds of two picks per site; after two steps of tuning the LLM solves hardly any."""
    short = {"texts": 8, "steps": 2, "batch_size": 2, "last_layers": 2}
    settings = bench_settings(
        "smollm2",
        harmful=0.3,
        held_out=10,
        changes=[
            "training.steps_per_round=1",
            "training.expected_units=5.0",
            "allocation.quota=2",
            "allocation.clusters=2",
            "distillation.adapter_layers=2",
            "paths.max_new_tokens=4",
            "guide.pool_steps=1",
            "guide.last_pool_steps=1",
            "world.private=10",
            "world.pool=10",
        ],
    )
    patch = pytest.MonkeyPatch()
    with patch.context() as changed:
        changed.setattr(simulation, "SLM_TUNING", replace(simulation.SLM_TUNING, **short))
        changed.setattr(simulation, "LLM_TUNING", replace(simulation.LLM_TUNING, **short))
        runs = Runs()
        report = run_allocation(
            BenchPlan(
                arms=arms_named(["random", "lada-secure"]),
                seeds=(10_000,),
                epsilons=(8.0,),
                draws=1,
                points={(): settings},
            ),
            runs=runs,
            cache_dir=tmp_path,
            jobs=1,
            progress=lambda _text: None,
        )
    outcomes = [run.outcome for run in runs.known.values()]
    assert [one.condition for one in outcomes] == ["random", "lada-secure"]
    assert all(0.0 <= one.accuracy <= 1.0 for one in outcomes)
    assert report["validation"]
