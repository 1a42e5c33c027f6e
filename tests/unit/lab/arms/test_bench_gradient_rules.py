"""Gradients by unit, their sketch and noised sum, and the arms that choose by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from lada_lab.arms.arms import ARMS
from lada_lab.arms.gradient_release import (
    DirectionParameters,
    directions_spec,
    release_directions,
    sum_of_directions,
)
from lada_lab.arms.gradient_rules import GradientAlignment, direction_parameters
from lada_lab.arms.gradients import Sketch, unit_gradients, unit_rows
from lada_lab.arms.ledgers import ArmLedger, SharedReleases
from lada_lab.arms.oracle import Oracle
from lada_lab.arms.pool_rules import Turn
from lada_lab.arms.rounds import SimulatedStudy
from lada_lab.arms.simulation import Laboratory
from lada_secure.arrays import FloatArray
from lada_secure.data.records import Record
from lada_secure.errors import LocalProtocolError, ParameterError, PrivacyBudgetExceeded
from lada_secure.method.mechanisms import planned_epsilon, round_release
from lada_secure.method.site_round import site_statistics
from lada_secure.models.examples import RationaleExample, encode_example
from lada_secure.models.loss import ExampleLoss, LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.privacy.ledger.entries import ReserveEntry
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit

STEPS = 2**14
# Less noise than any study can pay for.
QUIET = DirectionParameters(length=2, noise_multiplier=0.05)


def test_a_sketch_is_linear_the_same_for_all_and_keeps_inner_products() -> None:
    rows = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 20_000))).float()
    rows[1] = 0.6 * rows[0] + 0.8 * rows[1]
    sketch, again = (Sketch.drawn(20_000, buckets=4096, seed=5) for _ in range(2))
    first, second = sketch(rows)
    assert torch.equal(again(rows)[0], first)
    torch.testing.assert_close(sketch(rows[:1] + rows[1:])[0], first + second, atol=1e-3, rtol=0)
    exact = float(rows[0] @ rows[1] / (rows[0].norm() * rows[1].norm()))
    # One standard deviation is about 1 / sqrt(4096) = 0.016.
    assert float(first @ second / (first.norm() * second.norm())) == pytest.approx(exact, abs=0.08)


@pytest.mark.parametrize(
    ("what", "rows", "expected"),
    [
        ("directions count, not lengths", [[3.0, 4.0], [300.0, 400.0]], [1.2, 1.6]),
        ("opposite units cancel", [[0.0, 2.0], [0.0, -1.0]], [0.0, 0.0]),
        ("no gradient adds nothing", [[0.0, 0.0], [1.0, 0.0]], [1.0, 0.0]),
        ("NaN adds nothing", [[math.nan, 1.0], [0.0, 1.0]], [0.0, 1.0]),
        ("infinity adds nothing", [[math.inf, 1.0], [0.0, 1.0]], [0.0, 1.0]),
        ("no units", [], [0.0, 0.0]),
    ],
)
def test_a_unit_adds_its_direction(
    what: str, rows: list[list[float]], expected: list[float]
) -> None:
    found = sum_of_directions([np.array(row) for row in rows], QUIET)
    assert found.dtype == np.int64
    # Rounded towards zero: at most one step less per unit.
    np.testing.assert_allclose(found / STEPS, expected, atol=2 / STEPS, err_msg=what)


def test_no_unit_moves_the_sum_by_more_than_the_sensitivity() -> None:
    rng = np.random.default_rng(11)
    parameters = DirectionParameters(length=40, noise_multiplier=1.0)
    for scale in (1e-30, 1.0, 1e30):
        for _ in range(200):
            row = scale * rng.standard_normal(40) ** 3
            moved = sum_of_directions([row], parameters)
            assert float(np.linalg.norm(moved)) <= parameters.l2_sensitivity
    with pytest.raises(ParameterError, match="expected 2 entries"):
        sum_of_directions([np.zeros(3)], QUIET)


def test_a_release_is_paid_for_once_and_noised(laboratory: Laboratory) -> None:
    study = opened(laboratory, "gradient-alignment")
    site = study.sites[0]
    spec = round_release(study.plan, 0, directions_spec, QUIET)
    calls: list[int] = []

    def measured(_paid: object) -> list[FloatArray]:
        calls.append(1)
        return [np.array([3.0, 4.0])] * 10

    with pytest.raises(PrivacyBudgetExceeded):
        release_directions(measured, parameters=QUIET, book=site.ledger, spec=spec)
    assert calls == []
    noisy = DirectionParameters(length=2, noise_multiplier=20.0)
    with pytest.raises(LocalProtocolError, match="gradients_spec"):
        release_directions(measured, parameters=noisy, book=site.ledger, spec=spec)
    spec = round_release(study.plan, 0, directions_spec, noisy)
    for _ in range(2):
        release_directions(measured, parameters=noisy, book=site.ledger, spec=spec)
    assert calls == [1]
    assert 0.0 < site.ledger.epsilon_spent(1e-5) < 1.0


def opened(laboratory: Laboratory, name: str) -> SimulatedStudy:
    return laboratory.study(ARMS[name], laboratory.plan_of(ARMS[name], 8.0))


def test_a_unit_has_the_gradient_that_autograd_gives_it(laboratory: Laboratory) -> None:
    site = opened(laboratory, "random").sites[0].context
    site.wear(opened(laboratory, "random").sites[0].state)
    texts = [("4fg", "4f7g1"), ("4fghk", "4f7g1h2k3"), ("4f", "4f7")]
    examples = [
        encode_example(
            site.lm,
            RationaleExample(example_id=prompt, prompt=prompt, path=path, rejected=None),
            contrast=False,
        )
        for prompt, path in texts
    ]
    units = [examples[:1], examples[1:], examples[2:]]
    with unit_gradients(site.lm, batch_size=2) as gradients:
        found = gradients.of_each(units, lambda rows: rows)
    trained = [one for one in site.lm.model.parameters() if one.requires_grad]
    loss_of = ExampleLoss(
        RationaleScorer(site.lm.model, device=site.lm.device), LossSettings(contrastive_weight=0.0)
    )
    for unit, row in zip(units, found, strict=True):
        plain = torch.autograd.grad(loss_of(unit).sum(), trained)
        expected = torch.cat([one.flatten() for one in plain])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
        assert float(row.norm()) > 0.0


def test_rows_of_norm_one() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(unit_rows(rows), expected)


def test_gradient_alignment_is_paid_from_what_data_valuation_costs(laboratory: Laboratory) -> None:
    study = opened(laboratory, "gradient-alignment")
    full = laboratory.plan_of(ARMS["lada-secure"], 8.0)
    assert full.guide is not None
    assert full.guide.trials is not None
    multiplier = full.guide.trials.noise_multiplier
    assert direction_parameters(study.sites[0].context).noise_multiplier == multiplier
    for round_id in range(study.plan.rounds):
        study.run_round(round_id)
    for site in study.sites:
        entries = site.ledger.entries()
        released = [entry.purpose for entry in entries if isinstance(entry, ReserveEntry)]
        assert sorted(released) == ["gradients"] * 2 + ["statistics"] * 2 + ["training"] * 2
        assert site.ledger.epsilon_spent(1e-5) == pytest.approx(planned_epsilon(full), rel=1e-3)


def test_without_that_budget_gradient_alignment_is_refused(laboratory: Laboratory) -> None:
    study = opened(laboratory, "gradient-alignment")
    plan = study.plan
    assert plan.guide is not None
    bare = plan.model_copy(update={"guide": plan.guide.model_copy(update={"trials": None})})
    with pytest.raises(ParameterError, match=r"needs guide\.trials"):
        direction_parameters(replace(study.sites[0].context, plan=bare))


def as_records(study: SimulatedStudy, pool_indices: Sequence[int]) -> tuple[Unit, ...]:
    """Units whose only records are pool samples, with the LLM's rationales for their own."""
    pool, paths = study.llm.data.pool, study.llm.paths()
    return tuple(
        Unit(
            unit_id=f"person-{at}",
            records=(
                Record(
                    record_id=f"own-{at}",
                    unit=f"person-{at}",
                    question=pool[at].question,
                    choices=(),
                    answer=pool[at].answer,
                    # Reasoning, then the answer in a last line.
                    rationale=paths.texts[at].rpartition("\n")[0],
                ),
            ),
        )
        for at in pool_indices
    )


@pytest.mark.parametrize("place", [0, 4])
def test_gradient_alignment_asks_for_the_sample_that_is_the_sites_own_record(
    place: int, laboratory: Laboratory
) -> None:
    study = opened(laboratory, "gradient-alignment")
    own = sorted(study.llm.paths().texts)[place]
    plan, guide = study.plan, study.plan.guide
    assert guide is not None
    assert guide.trials is not None
    # One sample, and so little noise that it hides no single unit.
    trials = guide.trials.model_copy(update={"noise_multiplier": 0.05})
    loud = plan.model_copy(
        update={
            "privacy": plan.privacy.model_copy(update={"epsilon_cap": 499.0}),
            "allocation": plan.allocation.model_copy(update={"quota": 1}),
            "guide": guide.model_copy(update={"trials": trials}),
        }
    )
    site = study.sites[0]
    context = replace(
        site.context,
        plan=loud,
        records=PrivateRecords(as_records(study, [own])),
        book=ArmLedger(loud, site=site.name, shared=SharedReleases(), group="own"),
    )
    turn = Turn(
        name=site.name,
        site=context,
        state=site.state,
        round_id=0,
        noised=site_statistics(site.context, site.state, 0).value,
        available=study.llm.solved,
    )
    chosen = GradientAlignment(llm=study.llm).choose(turn)
    assert np.flatnonzero(chosen).tolist() == [own]


def test_the_oracle_asks_for_the_samples_that_are_the_sites_own_records(
    laboratory: Laboratory,
) -> None:
    # Of the samples of one cluster that the LLM solves, a few are the site's records, rationale
    # and all.
    study = opened(laboratory, "oracle")
    paths = study.llm.paths()
    quota, clusters = study.plan.allocation.quota, study.sites[0].context.pool_clusters
    largest = int(np.bincount(clusters[sorted(paths.texts)]).argmax())
    own = [at for at in sorted(paths.texts) if clusters[at] == largest][1 : 1 + quota]
    assert len(own) == quota
    units = as_records(study, own)
    guide = study.plan.guide
    assert guide is not None
    longer = study.plan.model_copy(
        update={
            "guide": guide.model_copy(
                update={"pool_steps": 20, "last_pool_steps": 40, "pool_learning_rate": 0.05}
            )
        }
    )
    site = study.sites[0]
    context = replace(site.context, plan=longer)
    turn = Turn(
        name=site.name,
        site=context,
        state=site.state,
        round_id=0,
        noised=site_statistics(site.context, site.state, 0).value,
        available=study.llm.solved,
    )
    oracle = Oracle(llm=study.llm, units={site.name: units})
    assert sorted(np.flatnonzero(oracle.choose(turn)).tolist()) == own
    useful = oracle.useful_clusters(turn)
    assert useful[largest] == useful.max() > 0.5
    # What the site has asked for already is left out.
    taken = replace(turn, available=study.llm.solved & ~np.isin(np.arange(50), own))
    assert not set(np.flatnonzero(oracle.choose(taken)).tolist()) & set(own)


def test_without_a_valuation_to_make_exact_the_oracle_is_refused(laboratory: Laboratory) -> None:
    study = opened(laboratory, "oracle")
    site, guide = study.sites[0], study.plan.guide
    assert guide is not None
    bare = study.plan.model_copy(update={"guide": guide.model_copy(update={"trials": None})})
    turn = Turn(
        name=site.name,
        site=replace(site.context, plan=bare),
        state=site.state,
        round_id=0,
        noised=site_statistics(site.context, site.state, 0).value,
        available=study.llm.solved,
    )
    with pytest.raises(ParameterError, match=r"needs guide\.trials"):
        Oracle(llm=study.llm, units={site.name: laboratory.units[0]}).choose(turn)
