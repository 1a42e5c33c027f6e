"""Every condition runs a whole study, on one budget, and reads nothing that is held out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lada_lab.arms.arms import ARMS, Arm
from lada_lab.arms.ledgers import ArmLedger, SharedReleases
from lada_lab.arms.run_file import parse_releases, releases_bytes
from lada_lab.arms.simulation import Laboratory, Outcome, PreparedWorld
from lada_lab.arms.study import LabSettings
from lada_lab.worlds.study_data import BenchData
from lada_secure.allocation.selection import read_scores
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.method import llm_round
from lada_secure.method.llm_round import write_rationales
from lada_secure.method.site_knowledge import site_choice, slm_knowledge
from lada_secure.method.site_round import site_statistics
from lada_secure.method.site_state import SiteState

# They differ from another condition in one setting, which test_bench_study.py looks at.
_ALIKE = (
    *("no-replay", "with-contrast", "no-screen", "random-screen", "random-joint"),
    *("random-pool-private", "lada", "band", "guided", "valuation", "domain", "fedmkt-gap"),
    *("gain", "valued_gain", "paper-screen", "paper-transfer", "domain-guide"),
    *("fedmkt-topics", "fedcollm-topics"),
    # Most of their time is noise calibrated for many steps.
    *("lada-joint", "lada-pool-private"),
    "gain-top",
    # Rivals and ablations; one of each kind stays among the quick tests.
    *("lada-fedcollm", "lada-transfer", "lada-fedmkt", "no-valuation", "gradient-alignment"),
)

# One study of each, for all tests below.
_STUDIES: dict[str, Outcome] = {}


def outcome(name: str, laboratory: Laboratory) -> Outcome:
    if name not in _STUDIES:
        _STUDIES[name] = laboratory.simulate(ARMS[name], epsilon=8.0)
    return _STUDIES[name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in _ALIKE else ()) for name in ARMS],
)
def test_every_condition_runs_and_keeps_to_its_budgets(
    name: str, laboratory: Laboratory, small_settings: LabSettings
) -> None:
    found, arm = outcome(name, laboratory), ARMS[name]
    assert 0.0 <= found.accuracy <= 1.0
    assert found.accuracy == pytest.approx(sum(found.by_site) / 3)
    # Epsilon is the ledgers' own figure. Arms with fewer releases have the same noise.
    if arm.private:
        assert 6.0 < found.spent <= 8.0 * 1.001
    else:
        assert found.spent == math.inf
    assert bool(found.transfers) == ("uplink" in arm.changes)
    quota = small_settings.plan.allocation.quota
    budget = {"none": 0, "all": small_settings.world.pool}.get(arm.asks, 2 * quota)
    last = [reports[-1] for reports in found.details.values()]
    assert all(one["trained"] <= one["received"] <= one["asked"] <= budget for one in last)
    if not arm.teaches_llm:
        assert found.llm_accuracy == found.llm_before


@pytest.mark.parametrize("name", ["random", "paper", "topic-quotas", "lada-secure", "fedmkt"])
def test_no_pick_is_wasted_on_a_sample_that_the_llm_cannot_solve(
    name: str, laboratory: Laboratory
) -> None:
    last = [reports[-1] for reports in outcome(name, laboratory).details.values()]
    assert all(one["received"] == one["asked"] for one in last)
    assert any(one["asked"] for one in last)


@pytest.mark.slow
def test_arms_share_the_releases_that_depend_on_nothing_they_differ_in(
    prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    laboratory = Laboratory.open(prepared, small_settings)
    laboratory.simulate(ARMS["topic-quotas"], epsilon=8.0)
    shared = laboratory.releases["site-a"]
    before = dict(shared.outputs)
    assert sorted(key[2] for key in before) == ["statistics", "training"]
    laboratory.simulate(ARMS["random"], epsilon=8.0)
    assert shared.outputs == before
    # Another epsilon is another noise, and a joint training reads the pool.
    laboratory.simulate(ARMS["random"], epsilon=4.0)
    laboratory.simulate(ARMS["random-joint"], epsilon=8.0)
    kinds = [(key[0] in {old[0] for old in before}, key[2]) for key in shared.outputs]
    assert sorted(kinds) == [
        (False, "statistics"),
        (False, "statistics"),
        (False, "training"),
        (True, "statistics"),
        (True, "training"),
    ]


def test_a_draw_that_was_interrupted_goes_on_with_its_releases(
    prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    first = Laboratory.open(prepared, small_settings)
    alone = first.simulate(ARMS["topic-quotas"], epsilon=8.0)
    assert alone.alone_s == alone.cpu_s
    kept = parse_releases(releases_bytes(first.releases), where="here")
    again = Laboratory.open(prepared, small_settings).redrawn(kept)
    before = {name: dict(shared.outputs) for name, shared in kept.items()}
    found = again.simulate(ARMS["random"], epsilon=8.0)
    assert {name: shared.outputs for name, shared in again.releases.items()} == before
    # What it need not compute again counts as its own.
    spared = sum(one.cpu_s for shared in before.values() for one in shared.values())
    assert found.alone_s == pytest.approx(found.cpu_s + spared)
    # Another draw of the same world has noise of its own.
    other = again.redrawn()
    drawn = other.simulate(ARMS["random"], epsilon=8.0)
    mine, yours = (lab.releases["site-a"].outputs for lab in (again, other))
    assert set(mine) == set(yours)
    assert all(mine[key].output != yours[key].output for key in mine)
    # The LLM has looked at the pool already, whatever the draw.
    assert drawn.alone_s > drawn.cpu_s


def test_the_gap_asks_for_no_sample_that_the_slm_knows(laboratory: Laboratory) -> None:
    plan = laboratory.plan_of(ARMS["gap-top"], 8.0)
    study = laboratory.study(ARMS["gap-top"], plan)
    wanted = []
    for site in study.sites:
        slm = slm_knowledge(site.context, site.state)
        assert slm is not None
        noised = site_statistics(site.context, site.state, 0).value
        scores = study.llm.scores(site_choice(site.context, site.state, noised).utilities)
        wanted.append((read_scores(scores) >= plan.allocation.threshold) & ~slm.right)
    study.run_round(0)
    for site, wrong in zip(study.sites, wanted, strict=True):
        picks = list(site.state.picks[0])
        # Of a cluster that noise has made the only one there may be nothing.
        assert len(picks) == min(plan.allocation.quota, wrong.sum())
        assert wrong[picks].all()


def test_what_another_arm_has_computed_is_paid_for_again_and_not_computed(
    laboratory: Laboratory,
) -> None:
    plan = laboratory.plan_of(ARMS["random"], 8.0)
    shared = SharedReleases()
    first, second = (ArmLedger(plan, site="site-a", shared=shared, group="one") for _ in range(2))
    from lada_secure.allocation.statistics import statistics_spec
    from lada_secure.method.mechanisms import round_release, statistics_parameters

    parameters = statistics_parameters(plan)

    calls: list[int] = []

    def compute(_paid: object) -> bytes:
        calls.append(1)
        return b"noised"

    for book in (first, second):
        spec = round_release(plan, 0, statistics_spec, parameters)
        done = book.release(spec, compute=compute, encode=bytes, decode=bytes)
        assert done.value == b"noised"
        assert book.epsilon_spent(1e-5) > 0.0
    assert calls == [1]
    later = round_release(plan, 1, statistics_spec, parameters)
    for book in (first, second):
        book.release(later, compute=compute, encode=bytes, decode=bytes)
    assert calls == [1, 1, 1]


def test_what_the_llm_has_written_for_one_arm_another_gets_for_its_price(
    prepared: PreparedWorld, small_settings: LabSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory, arm = Laboratory.open(prepared, small_settings), ARMS["random"]
    plan = laboratory.plan_of(arm, 8.0)
    first, second = (laboratory._llm_for(arm, plan) for _ in range(2))
    spared = second.spared_s
    demand = np.zeros(plan.pool_size, dtype=np.int64)
    demand[np.flatnonzero(first.solved)[:6]] = [1, 2, 1, 3, 1, 1]
    demand[np.flatnonzero(~first.solved)[:2]] = 1
    wanted = write_rationales(first.lm, plan, prepared.data.pool, demand.tolist()).texts
    assert [(one.pool_index, one.text) for one in first.write(demand.tolist())] == [*wanted.items()]
    monkeypatch.setattr(llm_round, "generate_rationales", None)
    assert second.write(demand.tolist()) == first.write(demand.tolist())
    assert second.spared_s > spared


def test_before_training_one_site_asks_the_slm_for_all(
    prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    laboratory, arm = Laboratory.open(prepared, small_settings), ARMS["gain-top"]
    study = laboratory.study(arm, laboratory.plan_of(arm, 8.0))
    untaught = SiteState()
    asked = [slm_knowledge(site.context, untaught) for site in study.sites]
    assert asked[0] is asked[1] is asked[2]
    context = study.sites[0].context
    again = slm_knowledge(replace(context, untaught=None), untaught)
    assert again is not None
    assert asked[0] is not None
    assert (again.confidence == asked[0].confidence).all()
    # A student is another model.
    trained = replace(untaught, student=context.reference)
    assert slm_knowledge(context, trained) is not asked[0]


Samples = tuple[PoolSample, ...]


def with_pool(prepared: PreparedWorld, pool: Samples) -> PreparedWorld:
    return replace(prepared, data=replace(prepared.data, pool=pool, harmful=frozenset()))


def solved_sample(laboratory: Laboratory) -> PoolSample:
    outcome("random", laboratory)
    assert laboratory._llm is not None
    return laboratory.prepared.data.pool[int(laboratory._llm.solved.argmax())]


def test_a_pool_of_one_question_over_and_over_is_one_cluster_and_works(
    prepared: PreparedWorld, small_settings: LabSettings, laboratory: Laboratory
) -> None:
    one = solved_sample(laboratory)
    copies = tuple(replace(one, sample_id=f"copy-{number}") for number in range(20))
    found = Laboratory.open(with_pool(prepared, copies), small_settings)
    assert found.clusters.count == 1
    last = found.simulate(ARMS["lada-secure"], epsilon=8.0).details["site-a"][-1]
    quota = small_settings.plan.allocation.quota
    # In the second round the noised valuation may say that the one cluster there is does harm.
    assert last["received"] in (quota, 2 * quota)


def test_fewer_samples_than_the_budget_are_all_that_is_asked_for(
    prepared: PreparedWorld, small_settings: LabSettings, laboratory: Laboratory
) -> None:
    few = with_pool(prepared, (solved_sample(laboratory),))
    found = Laboratory.open(few, small_settings).simulate(ARMS["lada-secure"], epsilon=8.0)
    assert found.details["site-a"][-1]["asked"] == 1


def test_a_pool_that_the_llm_cannot_solve_leaves_the_private_records(
    prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    wrong = tuple(replace(one, answer="none") for one in prepared.data.pool)
    laboratory = Laboratory.open(with_pool(prepared, wrong), small_settings)
    found = laboratory.simulate(ARMS["lada-secure"], epsilon=8.0)
    assert found.details["site-a"][-1]["received"] == 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", "comes 2 times"),
        ("no answer", "no gold answer"),
        ("too long", r"needs [0-9]+ tokens, at most 64"),
        ("no records", "expected at least one record"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_name(
    kind: str, message: str, prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    data: BenchData = prepared.data
    pool, sites = data.pool, data.sites
    changed = {
        "twice": replace(data, pool=(*pool, pool[3])),
        "no answer": replace(data, pool=tuple(replace(one, answer="") for one in pool)),
        "too long": replace(data, pool=(replace(pool[0], question="4" + "x" * 80), *pool[1:])),
        "no records": replace(data, sites=(replace(sites[0], train=()), *sites[1:])),
    }[kind]
    with pytest.raises(ParameterError, match=message):
        Laboratory.open(replace(prepared, data=changed), small_settings).simulate(
            ARMS["random"], epsilon=8.0
        )


@pytest.mark.parametrize("kind", ["one cluster", "no rationale"])
def test_sites_whose_records_are_all_alike_work(
    kind: str, prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    sites = tuple(
        replace(
            site,
            train=tuple(
                replace(one, question=site.train[0].question)
                if kind == "one cluster"
                else replace(one, rationale=None)
                for one in site.train
            ),
        )
        for site in prepared.data.sites
    )
    alike = replace(prepared, data=replace(prepared.data, sites=sites))
    found = Laboratory.open(alike, small_settings).simulate(ARMS["lada-secure"], epsilon=8.0)
    assert found.details["site-a"][-1]["asked"] <= 2 * small_settings.plan.allocation.quota


def test_clusters_are_made_from_the_public_pool_alone(
    prepared: PreparedWorld, small_settings: LabSettings, laboratory: Laboratory
) -> None:
    sites = tuple(replace(site, train=site.train[:5]) for site in prepared.data.sites)
    fewer = replace(prepared, data=replace(prepared.data, sites=sites))
    found = Laboratory.open(fewer, small_settings)
    assert np.array_equal(found.clusters.centroids, laboratory.clusters.centroids)


def test_both_models_are_of_the_settings_dtype(
    prepared: PreparedWorld, small_settings: LabSettings
) -> None:
    shorter = Laboratory.open(prepared, replace(small_settings, dtype="bfloat16"))
    arm = ARMS["no-pool"]
    study = shorter.study(arm, shorter.plan_of(arm, 8.0))
    models = [study.llm.lm.model, *(site.context.lm.model for site in study.sites)]
    for model in models:
        weights = dict(model.named_parameters())
        bases = {one.dtype for name, one in weights.items() if "lora" not in name}
        assert bases == {torch.bfloat16}


def test_an_arm_that_asks_for_nothing_is_private_records_alone(laboratory: Laboratory) -> None:
    last = outcome("no-pool", laboratory).details["site-a"][-1]
    assert (last["asked"], last["trained"]) == (0, 0)
    everything = outcome("whole-pool", laboratory).details["site-a"][-1]
    assert everything["asked"] == everything["received"] > 6


def test_an_arm_is_a_name_a_summary_and_changes_to_the_plan(laboratory: Laboratory) -> None:
    arm = Arm(name="mine", summary="x", changes={"allocation.quota": 1})
    last = laboratory.simulate(arm, epsilon=8.0).details["site-a"][-1]
    assert last["asked"] <= 2
