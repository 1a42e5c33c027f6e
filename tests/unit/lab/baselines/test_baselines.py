"""FedMKT and FedCoLLM on models of a few thousand weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tiny_baselines import CHARACTERS, lm_with_tokens, pool_of

from lada_lab.baselines.logit_baseline import (
    SELECTIONS,
    BaselineTraining,
    LogitBaseline,
    LogitSettings,
)
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


def opened(name: str) -> tuple[LogitBaseline, LanguageModel, LanguageModel]:
    llm, slm = models()
    return LogitBaseline(name, POOL, llm=llm, slm=slm, settings=LogitSettings(k=4)), llm, slm


def test_losses_are_the_cross_entropy_of_the_same_texts_under_both_models() -> None:
    baseline, llm, slm = opened("fedmkt")
    for lm in (llm, slm):
        losses = baseline.losses(lm, PATHS)
        for loss, (pool_index, path) in zip(losses, PATHS.items(), strict=True):
            ids = torch.tensor(
                [lm.encode_prompt(POOL[pool_index].question + "\n") + lm.encode_rationale(path)]
            )
            kept = len(lm.encode_rationale(path))
            with torch.no_grad():
                logits = lm.model(input_ids=ids).logits[0, -kept - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, ids[0, -kept:])
            assert loss == pytest.approx(float(expected), rel=1e-4)


def test_fedmkt_sends_only_what_the_teacher_knows_better_and_fedcollm_everything() -> None:
    """Dual minimum cross-entropy, Fan et al. 2024."""
    teacher, learner = np.array([0.5, 1.0, 3.0, 0.1]), np.array([1.0, 1.0, 2.0, 0.5])
    assert SELECTIONS["fedmkt"](teacher, learner).tolist() == [True, False, False, True]
    assert SELECTIONS["fedcollm"](teacher, learner).tolist() == [True] * 4


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_round_trains_the_site_on_what_was_sent_and_nobody_else(name: str) -> None:
    baseline, llm, slm = opened(name)
    teacher, before = adapter_weights(llm), baseline.losses(slm, PATHS)
    assert baseline.teach(slm, {}, TRAINING) == ()
    sent = baseline.teach(slm, PATHS, TRAINING)
    assert set(sent) == set(PATHS) if name == "fedcollm" else set(sent) <= set(PATHS)
    after = baseline.losses(slm, PATHS)
    assert all(after[pool_index] < before[pool_index] for pool_index in sent)
    assert adapter_weights(llm) == teacher


def test_in_fedmkt_the_best_student_teaches_the_llm_what_it_knows_better() -> None:
    baseline, llm, slm = opened("fedmkt")
    one = {0: PATHS[0]}
    start, first = adapter_weights(slm), baseline.losses(llm, one)
    # A student that has learned the sample elsewhere.
    LogitBaseline("fedcollm", POOL, llm=llm, slm=slm).teach(slm, one, TRAINING)
    learned = adapter_weights(slm)
    asked: list[str] = []

    def student(name: str, weights: AdapterWeights) -> LanguageModel:
        asked.append(name)
        load_adapters(slm, weights)
        return slm

    students = [partial(student, "fresh", start), partial(student, "taught", learned)]
    assert baseline.teach_llm(students, one, TRAINING) == 1
    assert asked == ["fresh", "taught", "taught"]
    assert baseline.losses(llm, one)[0] < first[0]
    # Now the LLM knows it better than both.
    assert baseline.teach_llm(students, one, TRAINING) == 0
    assert baseline.teach_llm([], PATHS, TRAINING) == 0
    assert baseline.teach_llm(students, {}, TRAINING) == 0


def test_in_fedcollm_the_llm_learns_from_the_shared_slm_on_all_samples() -> None:
    baseline, llm, slm = opened("fedcollm")
    before, weights = baseline.losses(llm, PATHS), adapter_weights(llm)
    assert baseline.teach_llm([lambda: slm], PATHS, TRAINING) == len(PATHS)
    assert adapter_weights(llm) != weights
    assert baseline.losses(llm, PATHS).mean() < before.mean()


def test_a_baseline_serves_sites_whose_slm_has_other_tokens() -> None:
    llm, _ = models()
    slm = lm_with_tokens("pairs", ["a4", "e2", *CHARACTERS], seed=3, adapters=True)
    baseline = LogitBaseline("fedcollm", POOL, llm=llm, slm=slm)
    before = baseline.losses(slm, PATHS)
    assert baseline.teach(slm, PATHS, TRAINING) == (0, 1, 2, 3)
    assert (np.exp(-baseline.losses(slm, PATHS)) - np.exp(-before)).sum() > 0.1


def test_models_whose_tokenizers_share_nothing_are_refused() -> None:
    llm, _ = models()
    with pytest.raises(ParameterError, match="share no token"):
        LogitBaseline("fedmkt", POOL, llm=llm, slm=lm_with_tokens("runes", ["ᚠ", "ᚢ"]))


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    llm, slm = models()
    with pytest.raises(ParameterError, match="one of fedmkt, fedcollm, got fedavg"):
        LogitBaseline("fedavg", POOL, llm=llm, slm=slm)


def test_a_path_longer_than_the_context_loses_its_end() -> None:
    baseline, _, slm = opened("fedmkt")
    baseline.teach(slm, {0: "a1" * 40}, TRAINING)


def test_a_sample_that_the_pool_does_not_have_is_refused() -> None:
    baseline, _, slm = opened("fedmkt")
    with pytest.raises(ParameterError, match="no sample 4"):
        baseline.teach(slm, {4: "a1"}, TRAINING)


def test_a_model_without_adapters_is_refused() -> None:
    llm, slm = models()
    baseline = LogitBaseline("fedcollm", POOL, llm=llm, slm=slm)
    bare = lm_with_tokens("bare", CHARACTERS, seed=2)
    with pytest.raises(ParameterError, match="no adapters"):
        baseline.teach(bare, {0: PATHS[0]}, TRAINING)


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
