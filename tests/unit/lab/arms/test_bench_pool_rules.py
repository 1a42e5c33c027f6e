"""The rule of the largest gap, and what the LLM would write for rules that see everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lada_lab.arms.arms import ARMS
from lada_lab.arms.pool_rules import LargestGap, Turn, answer_losses
from lada_lab.arms.simulation import Laboratory
from lada_secure.method.site_round import site_statistics


def test_the_largest_gap_is_where_the_llm_is_better_by_the_most(laboratory: Laboratory) -> None:
    arm = ARMS["loss-based"]
    study = laboratory.study(arm, laboratory.plan_of(arm, 8.0))
    site = study.sites[0]
    available = study.llm.solved.copy()
    available[np.flatnonzero(available)[0]] = False
    turn = Turn(
        name=site.name,
        site=site.context,
        state=site.state,
        round_id=0,
        noised=site_statistics(site.context, site.state, 0).value,
        available=available,
    )
    assert study.rule == LargestGap(llm=study.llm)
    # An LLM that is better than the SLM on later samples, and worse on the earlier half.
    site.context.wear(site.state)
    gaps = np.arange(len(available)) / 10.0 - len(available) / 20.0
    looks = replace(study.llm._looks, answer_losses=answer_losses(site.context) - gaps)
    rule = LargestGap(llm=replace(study.llm, _looks=looks))
    quota = study.plan.allocation.quota
    assert np.flatnonzero(rule.choose(turn)).tolist() == np.flatnonzero(available)[-quota:].tolist()
    worse = replace(turn, available=available & (gaps <= 0.0))
    assert worse.available.any()
    assert not rule.choose(worse).any()


def test_what_the_llm_would_write_is_written_once_and_counted_for_every_arm(
    laboratory: Laboratory,
) -> None:
    arm = ARMS["paper"]
    first, second = (laboratory.study(arm, laboratory.plan_of(arm, 8.0)).llm for _ in range(2))
    paths = first.paths()
    # The LLM of the laboratory is looked at once; others pay for what they find.
    before = second.spared_s
    assert second.paths() is paths
    assert second.paths() is paths
    assert second.spared_s == before + paths.cpu_s
    assert set(paths.texts) == set(np.flatnonzero(first.solved).tolist())
    assert np.flatnonzero(paths.solved).tolist() == sorted(paths.texts)
    pool = first.data.pool
    assert all(
        first.lm.form.right(text, pool[at].choices, pool[at].answer)
        for at, text in paths.texts.items()
    )
    # What is written on demand is the same.
    demand = [int(at in paths.texts) for at in range(len(pool))]
    written = {one.pool_index: one.text for one in first.write(demand)}
    assert all(paths.texts[at] == text for at, text in written.items())
