"""Tuning on public paths: what it learns, what it keeps, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainer_doubles import example, small_model

from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.evaluation import rationale_log_probabilities
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

EXAMPLES = [example(at) for at in range(4)]
KEPT = [example(at) for at in range(30, 34)]


def settings(**changes) -> TuningSettings:
    values = {"steps": 20, "batch_size": 4, "replay_batch_size": 4, "learning_rate": 1e-2}
    return TuningSettings(**{**values, **changes})


def adapted() -> LanguageModel:
    lm = small_model()
    attach_adapters(lm, AdapterSettings(rank=4))
    return lm


def mean_log_p(lm, examples, *, own=False) -> float:
    paths = [one.rejected if own else one.path for one in examples]
    return float(
        rationale_log_probabilities(
            lm, [one.prompt for one in examples], paths, batch_size=4
        ).mean.mean()
    )


def test_it_raises_the_paths_that_are_learned_and_changes_the_adapters_alone() -> None:
    lm = adapted()
    before, base = mean_log_p(lm, EXAMPLES), lm.model.get_input_embeddings().weight.clone()
    first = adapter_weights(lm)

    weights = tune_on_rationales(lm, EXAMPLES, [], settings())

    assert mean_log_p(lm, EXAMPLES) > before + 0.2
    assert weights == adapter_weights(lm) != first
    assert (lm.model.get_input_embeddings().weight == base).all()


def test_the_same_call_gives_the_same_weights_and_a_seed_gives_others() -> None:
    found = [
        tune_on_rationales(adapted(), EXAMPLES, KEPT, settings(batch_size=2, seed=s))
        for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_replay_holds_on_to_what_was_known() -> None:
    with_replay, without = adapted(), adapted()
    tune_on_rationales(with_replay, EXAMPLES, KEPT, settings())
    tune_on_rationales(without, EXAMPLES, KEPT, settings(replay_batch_size=0))
    assert mean_log_p(with_replay, KEPT) > mean_log_p(without, KEPT)


@pytest.mark.parametrize("form", ["margin", "dpo"])
def test_the_contrast_widens_the_lead_over_the_own_path(form: str) -> None:
    contrasted = [
        replace(one, rejected=other.path)
        for one, other in zip(EXAMPLES, reversed(EXAMPLES), strict=True)
    ]
    leads = []
    for weight in (0.0, 2.0):
        lm = adapted()
        loss = LossSettings(contrastive_form=form, contrastive_weight=weight)
        tune_on_rationales(lm, contrasted, [], settings(loss=loss))
        leads.append(mean_log_p(lm, contrasted) - mean_log_p(lm, contrasted, own=True))
    assert leads[1] > leads[0]


def test_few_examples_are_seen_a_few_times_only() -> None:
    seen = []
    tune_on_rationales(
        adapted(), EXAMPLES[:2], [], settings(steps=100, max_epochs=4, batch_size=2),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert settings(steps=3).steps_for(1) == 3
    assert settings(steps=8, max_epochs=1, batch_size=4).steps_for(1) == 1


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ParameterError, match="nothing to learn"):
        tune_on_rationales(adapted(), [], KEPT, settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"replay_batch_size": -1},
        {"max_epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes) -> None:
    with pytest.raises(ParameterError, match=next(iter(changes))):
        settings(**changes)
