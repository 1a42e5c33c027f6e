"""FedMKT and FedCoLLM through the interface that LaDa uses, on models of a few thousand weights."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_baselines import CHARACTERS, lm_with_tokens, pool_of

from lada_lab.baselines.allocator import allocate
from lada_lab.baselines.baseline import Baseline, BaselineState, DualLosses, check_pool
from lada_lab.baselines.fedcollm import FedCoLlmBaseline
from lada_lab.baselines.fedmkt import FedMktBaseline
from lada_lab.baselines.logit_baseline import LogitBaseline, LogitSettings
from lada_lab.baselines.rounds import BaselineTraining, train_baseline, transfer
from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.selection import AllocationSettings, PoolMap
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.loading import LanguageModel

POOL = pool_of("1a", "2b", "3c", "4de")
PATHS = {0: "a4\n4", 1: "b9\n9", 2: "c0\n0", 3: "d1e2\n2"}
TRAINING = BaselineTraining(steps=30, batch_size=2, learning_rate=3e-2)


def models() -> tuple[LanguageModel, LanguageModel]:
    return (
        lm_with_tokens("llm", CHARACTERS, seed=1, width=32, adapters=True),
        lm_with_tokens("slm", CHARACTERS, seed=2, adapters=True),
    )


def opened(kind: type[LogitBaseline]) -> tuple[LogitBaseline, LanguageModel, LanguageModel]:
    llm, slm = models()
    return kind(POOL, llm=llm, slm=slm, settings=LogitSettings(k=4)), llm, slm


def test_losses_are_the_cross_entropy_of_the_same_texts_under_both_models() -> None:
    baseline, llm, slm = opened(FedMktBaseline)
    found = baseline.losses(slm, PATHS)
    for lm, losses in ((llm, found.llm), (slm, found.slm)):
        for loss, (pool_index, path) in zip(losses, PATHS.items(), strict=True):
            ids = torch.tensor(
                [lm.encode_prompt(POOL[pool_index].question + "\n") + lm.encode_rationale(path)]
            )
            kept = len(lm.encode_rationale(path))
            with torch.no_grad():
                logits = lm.model(input_ids=ids).logits[0, -kept - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, ids[0, -kept:])
            assert loss == pytest.approx(float(expected), rel=1e-4)


def test_fedmkt_sends_only_what_the_llm_knows_better() -> None:
    """Dual minimum cross-entropy, Fan et al. 2024."""
    baseline, _, slm = opened(FedMktBaseline)
    losses = DualLosses(slm=np.array([1.0, 1.0, 2.0, 0.5]), llm=np.array([0.5, 1.0, 3.0, 0.1]))
    assert losses.llm_is_better.tolist() == [True, False, False, True]
    assert [one.pool_index for one in baseline.payload(slm, PATHS, losses)] == [0, 3]
    assert baseline.payload(slm, {}, DualLosses(slm=np.zeros(0), llm=np.zeros(0))) == ()


def test_fedcollm_sends_everything() -> None:
    baseline, _, slm = opened(FedCoLlmBaseline)
    losses = DualLosses(slm=np.zeros(4), llm=np.ones(4))
    assert [one.pool_index for one in baseline.payload(slm, PATHS, losses)] == [0, 1, 2, 3]


def test_losses_of_different_lengths_are_refused() -> None:
    with pytest.raises(ParameterError):
        DualLosses(slm=np.zeros(2), llm=np.zeros(3))


@pytest.mark.parametrize("kind", [FedMktBaseline, FedCoLlmBaseline])
def test_a_round_trains_the_site_and_rewards_what_it_learned(kind: type[LogitBaseline]) -> None:
    baseline, llm, slm = opened(kind)
    state, teacher = BaselineState(), adapter_weights(llm)
    first = transfer(baseline, slm, state, {0: PATHS[0], 1: PATHS[1]}, TRAINING)
    assert set(first.rewards) == {0, 1}
    assert set(first.sent) <= {0, 1}
    assert kind is FedMktBaseline or all(reward > 0.05 for reward in first.rewards.values())
    second = transfer(
        baseline, slm, state, {2: PATHS[2]}, TRAINING, keep=lambda pool_index: pool_index != 0
    )
    # Everything so far is chosen from again, apart from what LaDa does not want any more.
    assert set(second.rewards) == {1, 2}
    assert set(state.paths) == {0, 1, 2}
    assert adapter_weights(llm) == teacher


def test_rewards_are_the_change_of_exp_minus_loss() -> None:
    baseline, *_ = opened(FedMktBaseline)
    before = DualLosses(slm=np.array([2.0, 0.0]), llm=np.zeros(2))
    after = DualLosses(slm=np.array([1.0, 1.0]), llm=np.zeros(2))
    expected = [np.exp(-1) - np.exp(-2), np.exp(-1) - 1.0]
    assert baseline.reward(before, after).tolist() == pytest.approx(expected)


def test_in_fedmkt_the_best_student_teaches_the_llm_what_it_knows_better() -> None:
    baseline, llm, slm = opened(FedMktBaseline)
    one = {0: PATHS[0]}
    start, first = adapter_weights(slm), baseline.losses(slm, one)
    # A student that has learned the sample elsewhere.
    everything = FedCoLlmBaseline(POOL, llm=llm, slm=slm)
    train_baseline(baseline, slm, everything.payload(slm, one, first), TRAINING)
    learned = adapter_weights(slm)
    asked: list[str] = []

    def student(name: str, weights: AdapterWeights) -> LanguageModel:
        asked.append(name)
        load_adapters(slm, weights)
        return slm

    students = [partial(student, "fresh", start), partial(student, "taught", learned)]
    assert baseline.teach_llm(students, one, TRAINING) == 1
    assert asked == ["fresh", "taught", "taught"]
    assert baseline.losses(slm, one).llm[0] < first.llm[0]
    # Now the LLM knows it better than both.
    assert baseline.teach_llm(students, one, TRAINING) == 0
    assert baseline.teach_llm([], PATHS, TRAINING) == 0
    assert baseline.teach_llm(students, {}, TRAINING) == 0


def test_in_fedcollm_the_llm_learns_from_the_shared_slm_on_all_samples() -> None:
    baseline, llm, slm = opened(FedCoLlmBaseline)
    before, weights = baseline.losses(slm, PATHS).llm, adapter_weights(llm)
    assert baseline.teach_llm([lambda: slm], PATHS, TRAINING) == len(PATHS)
    assert adapter_weights(llm) != weights
    assert baseline.losses(slm, PATHS).llm.mean() < before.mean()


def test_a_host_serves_sites_whose_slm_has_other_tokens() -> None:
    llm, _ = models()
    slm = lm_with_tokens("pairs", ["a4", "e2", *CHARACTERS], seed=3, adapters=True)
    baseline: Baseline = FedCoLlmBaseline(POOL, llm=llm, slm=slm)
    done = transfer(baseline, slm, BaselineState(), PATHS, TRAINING)
    assert done.sent == (0, 1, 2, 3)
    assert sum(done.rewards.values()) > 0.1


def test_lada_in_front_of_a_host_is_what_the_page_says() -> None:
    """Runs the round of docs/allocation.md for two rounds."""
    page = Path(__file__).parents[4] / "docs" / "allocation.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    baseline, _, slm = opened(FedCoLlmBaseline)
    state = BaselineState()
    names = {
        "allocate": allocate,
        "transfer": transfer,
        "baseline": baseline,
        "slm": slm,
        "state": state,
        "training": TRAINING,
        "pool_map": PoolMap(
            grid=CellGrid(clusters=2, bins=1), clusters=np.array([0, 0, 1, 1], dtype=np.int64)
        ),
        "estimates": ClusterEstimates(
            masses=np.array([5.0, 5.0]), mean_losses=np.array([0.7, 0.7]), mass_std=1.0
        ),
        "score": lambda utilities: utilities[[0, 0, 1, 1]],
        "settings": AllocationSettings(quota=2),
        "write": lambda picks: {pool_index: PATHS[pool_index] for pool_index in picks},
        "cells": [0, 0, 1, 1],
    }
    for round_id in range(2):
        exec(code, {**names, "round_id": round_id})  # noqa: S102 (our own page)
    assert state.allocation.picked == set(PATHS) == set(state.paths)
    assert [sorted(one.cells.tolist()) for one in state.allocation.history.rounds] == [[0, 1]] * 2
    assert (state.allocation.history.last_rewards(2) > 0.0).all()


def test_models_whose_tokenizers_share_nothing_are_refused() -> None:
    llm, _ = models()
    with pytest.raises(ParameterError, match="share no token"):
        FedMktBaseline(POOL, llm=llm, slm=lm_with_tokens("runes", ["ᚠ", "ᚢ"]))


def test_a_path_longer_than_the_context_loses_its_end() -> None:
    baseline, _, slm = opened(FedMktBaseline)
    transfer(baseline, slm, BaselineState(), {0: "a1" * 40}, TRAINING)


def test_a_sample_that_the_pool_does_not_have_is_refused() -> None:
    baseline, _, slm = opened(FedMktBaseline)
    with pytest.raises(ParameterError, match="no sample 4"):
        transfer(baseline, slm, BaselineState(), {4: "a1"}, TRAINING)


def test_a_model_without_adapters_is_refused() -> None:
    llm, slm = models()
    baseline = FedCoLlmBaseline(POOL, llm=llm, slm=slm)
    bare = lm_with_tokens("bare", CHARACTERS, seed=2)
    with pytest.raises(ParameterError, match="no adapters"):
        transfer(baseline, bare, BaselineState(), {0: PATHS[0]}, TRAINING)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ((), "at least one sample"),
        ((*POOL, POOL[0]), "'pool-0' comes 2 times"),
        ((PoolSample(sample_id="x", question="1a", choices=(), answer=" "),), "no gold answer"),
    ],
)
def test_a_pool_that_cannot_be_used_is_refused_by_name(
    pool: tuple[PoolSample, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        check_pool(pool)
    llm, slm = models()
    with pytest.raises(ParameterError, match=message):
        FedMktBaseline(pool, llm=llm, slm=slm)


@pytest.mark.parametrize("change", [{"k": 0}, {"batch_size": 0}, {"weight": 1.5}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        LogitSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": float("nan")}]
)
def test_training_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        BaselineTraining(**{"steps": 1, "batch_size": 1, "learning_rate": 0.1, **change})  # type: ignore[arg-type]
