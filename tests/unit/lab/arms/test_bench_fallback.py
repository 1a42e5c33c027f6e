"""A pool, a site or an LLM that is not worth following: what the study does instead, and says.

Whole studies with small trained models, by the functions that parties run. Noise is the same
wherever one release is computed, so that "no worse than no pool" is equality with no pool.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injected_noise import InjectedNoise
from small_study import CHANGES, SEED
from typer.testing import CliRunner

from lada_clients.site.explain.commands import app
from lada_clients.site.memory import SiteMemory
from lada_lab.arms.arms import ARMS
from lada_lab.arms.presets import bench_settings
from lada_lab.arms.rounds import SimulatedRound, SimulatedStudy
from lada_lab.arms.simulation import Laboratory, PreparedWorld
from lada_lab.arms.study import LabSettings
from lada_lab.worlds.chain_world import WorldSettings, build_data
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.data.records import PoolSample
from lada_secure.models.confidence import answer_pool
from lada_secure.models.loading import load_folder

EPSILON = 8.0
Models = tuple[Path, Path]


@pytest.fixture(autouse=True)
def one_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    InjectedNoise(11).inject(monkeypatch.setattr)


def settings(**changes: Any) -> LabSettings:
    """The small study with fallbacks on, and more samples."""
    base = [one for one in CHANGES if not one.startswith("allocation.fallback")]
    more = {"world.pool": 150, **changes}
    preset = bench_settings(
        "tiny",
        harmful=0.3,
        held_out=10,
        changes=(*base, *(f"{name}={json.dumps(value)}" for name, value in more.items())),
    )
    # Arms are compared to the last bit, so each has the shared settings.
    return replace(preset, tuned={})


def knowledge(folder: Path, pool: Sequence[PoolSample]) -> SlmKnowledge:
    found = answer_pool(load_folder(folder, name="it"), pool, batch_size=64, max_new_tokens=12)
    return SlmKnowledge(right=found.right, confidence=found.confidence)


@pytest.fixture(scope="module")
def solved(small_models: Models) -> tuple[PoolSample, ...]:
    """The samples that the LLM solves, surely: a pool on which it is right."""
    world = settings().world
    assert isinstance(world, WorldSettings)
    pool = build_data(world, seed=SEED).pool
    llm = knowledge(small_models[1], pool)
    return tuple(pool[at] for at in np.flatnonzero(llm.right & (llm.confidence >= 0.5)))


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A study that was run, and what each of its sites' folders would hold."""

    study: SimulatedStudy
    rounds: tuple[SimulatedRound, ...]
    folder: Path

    def students(self) -> list[str]:
        return [str(site.state.student and site.state.student.sha256) for site in self.study.sites]

    def told(self, site: str) -> Any:
        """What `lada explain --json` says, and that the text has the same sentence."""
        run = str(self.folder / site)
        raw = CliRunner().invoke(app, [run, "--json"], catch_exceptions=False)
        text = CliRunner().invoke(app, [run], catch_exceptions=False).stdout
        rounds = json.loads(raw.stdout)["rounds"]
        for one in rounds:
            assert (f"Fallback in round {one['round']}: " in text) is (one["fallback"] is not None)
            if one["fallback"] is not None:
                assert one["fallback"]["told"] in text
        return rounds


def run(arm: str, settings: LabSettings, models: Models, folder: Path, pool: Any = None) -> Ran:
    assert isinstance(settings.world, WorldSettings)
    data = build_data(settings.world, seed=SEED)
    if pool is not None:
        data = replace(data, pool=pool, harmful=frozenset())
    world = PreparedWorld(data=data, slm=models[0], llm=models[1], seed=SEED)
    laboratory = Laboratory.open(world, settings)
    study = laboratory.study(ARMS[arm], laboratory.plan_of(ARMS[arm], EPSILON))
    done = []
    for round_id in range(study.plan.rounds):
        done.append(study.run_round(round_id))
        for site, trained in zip(study.sites, done[-1].trained, strict=True):
            memory = SiteMemory(folder=folder / site.name / "studies" / f"first-{'0' * 16}")
            memory.folder.mkdir(parents=True, exist_ok=True)
            (memory.folder / "plan.json").touch()
            memory.keep_allocation(round_id, trained.cells, trained.fallback)
            memory.keep(site.state)
            assert memory.load().fallbacks == site.state.fallbacks
    return Ran(study=study, rounds=tuple(done), folder=folder)


def assert_no_pool(found: Ran, alone: Ran, cause: str, *figures: str) -> None:
    """Every site fell back in every round, to the very students of a study without a pool."""
    assert found.students() == alone.students()
    for one in found.rounds:
        assert sum(one.demand) == 0
        assert one.received == ()
    for site in found.study.sites:
        assert all(picks == () for picks in site.state.picks.values())
        for one in found.told(site.name):
            assert one["fallback"]["cause"] == cause
            assert one["fallback"]["told"].endswith("on the records alone, without the pool")
            assert all(figure in one["fallback"]["because"] for figure in figures)


def assert_any_topic(found: Ran, at_random: Ran, cause: str) -> None:
    """Every site chose as one that chooses at random, and said so."""
    for site, plain in zip(found.study.sites, at_random.study.sites, strict=True):
        assert site.state.picks == plain.state.picks
        assert all(site.state.picks.values())
        for one in found.told(site.name):
            assert one["fallback"]["cause"] == cause
            assert one["fallback"]["told"].endswith("that the LLM solves may be asked for")
            assert all(cell["why"] == "any topic: this round fell back" for cell in one["cells"])
    assert sum(one.fallback is None for done in at_random.rounds for one in done.trained) == 6


def test_a_pool_that_the_llm_mostly_gets_wrong_is_not_used(
    small_models: Models, tmp_path: Path
) -> None:
    weak = (small_models[0], small_models[0])
    found = run("lada-secure", settings(), weak, tmp_path)
    alone = run("no-pool", settings(), weak, tmp_path / "alone")
    assert_no_pool(found, alone, "llm_mostly_wrong", "pool samples (", "expected at least 50%")


def test_an_llm_that_is_weaker_than_the_slm_teaches_nothing(
    small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    turned = (small_models[1], small_models[0])
    # Where a plan allows for an LLM that is mostly wrong.
    plan = settings(**{"allocation.least_llm_right": 0.0})
    found = run("lada-secure", plan, turned, tmp_path, solved)
    alone = run("no-pool", plan, turned, tmp_path / "alone", solved)
    assert_no_pool(found, alone, "llm_weaker", "the LLM alone is right on", "the SLM alone on")


def test_a_pool_that_the_slm_knows_already_is_not_used(
    small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    same = (small_models[1], small_models[1])
    found = run("lada-secure", settings(), same, tmp_path, solved)
    alone = run("no-pool", settings(), same, tmp_path / "alone", solved)
    assert_no_pool(found, alone, "known_already", "the SLM knows 100% already")


def test_where_there_is_one_topic_samples_are_chosen_without_regard_to_it(
    small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    plan = settings(**{"allocation.clusters": 1})
    found = run("mass-valuation", plan, small_models, tmp_path, solved)
    at_random = run("random", plan, small_models, tmp_path / "random", solved)
    assert_any_topic(found, at_random, "one_topic")


def test_a_site_with_twenty_records_lets_no_topic_decide(
    small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    plan = settings(**{"world.private": 20})
    found = run("mass-valuation", plan, small_models, tmp_path, solved)
    at_random = run("random", plan, small_models, tmp_path / "random", solved)
    assert_any_topic(found, at_random, "few_records")


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"allocation.clusters": 1}, {"world.private": 20}])
def test_what_the_slm_lacks_still_decides_where_topics_do_not(
    change: Any, small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    found = run("lada-secure", settings(**change), small_models, tmp_path, solved)
    confidence = knowledge(small_models[0], solved).confidence
    for site in found.study.sites:
        # Later rounds look at a student that has learned.
        assert confidence[list(site.state.picks[0])].mean() < confidence.mean()
        for one in found.told(site.name):
            assert one["fallback"]["told"].endswith("that the LLM solves may be asked for")


@pytest.mark.slow
def test_a_healthy_pool_is_used_as_chosen(
    small_models: Models, solved: tuple[PoolSample, ...], tmp_path: Path
) -> None:
    enough = {"world.private": 150}
    found = run("lada-secure", settings(**enough), small_models, tmp_path, solved)
    off = settings(**enough, **{"allocation.fallback": "off"})
    plain_study = run("lada-secure", off, small_models, tmp_path / "off", solved)
    assert found.students() == plain_study.students()
    for site, plain in zip(found.study.sites, plain_study.study.sites, strict=True):
        assert site.state.picks == plain.state.picks
        assert any(site.state.picks.values())
        assert [one["fallback"] for one in found.told(site.name)] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["random-joint", "lada-pool-private"])
def test_records_and_pool_that_train_one_model_do_without_the_pool_as_well(
    arm: str, small_models: Models, tmp_path: Path
) -> None:
    found = run(arm, settings(), (small_models[0], small_models[0]), tmp_path)
    for done in found.rounds:
        assert all(one.trained_on == () and one.fallback is not None for one in done.trained)
    assert all(site.state.trained == (0, 1) for site in found.study.sites)


def test_an_llm_may_learn_from_sites_that_all_do_without_its_pool(
    small_models: Models, tmp_path: Path
) -> None:
    found = run("lada-transfer", settings(), (small_models[1], small_models[0]), tmp_path)
    assert found.rounds[-1].transfer is not None
    assert sum(sum(one.demand) for one in found.rounds) == 0
