"""Paths that a model writes, checked against the gold answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lada_lab.worlds.federation import build_federation
from lada_secure.data.prompts import answer_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import GeneratedRationales, Keep, Sampling
from lada_secure.models.rationales import generate_rationales as generated

POOL = build_federation("tiny", sites=3, seed=0).pool
MAX_NEW_TOKENS = 12


def generate_rationales(
    lm: LanguageModel,
    samples: Sequence[PoolSample],
    *,
    max_new_tokens: int,
    attempts: int,
    keep: Keep = "first",
) -> GeneratedRationales:
    return generated(
        lm,
        samples,
        batch_size=16,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(attempts=attempts, keep=keep),
    )


def test_every_sample_is_either_solved_or_dropped(tiny_slm: LanguageModel) -> None:
    found = generate_rationales(tiny_slm, POOL, max_new_tokens=MAX_NEW_TOKENS, attempts=1)
    solved = [one.sample_id for one in found.paths]
    assert [one.sample_id for one in POOL if one.sample_id in set(solved)] == solved
    assert [one.sample_id for one in POOL if one.sample_id not in set(solved)] == list(
        found.dropped
    )
    assert found.wrong == len(found.dropped) > 0
    assert solved


def test_every_kept_path_reaches_the_gold_answer(tiny_slm: LanguageModel) -> None:
    gold = {one.sample_id: one.answer for one in POOL}
    found = generate_rationales(tiny_slm, POOL, max_new_tokens=MAX_NEW_TOKENS, attempts=2)
    assert all(answer_of(one.path, ()) == gold[one.sample_id] for one in found.paths)


def test_further_attempts_add_paths_to_those_of_the_first(tiny_slm: LanguageModel) -> None:
    one = generate_rationales(tiny_slm, POOL, max_new_tokens=MAX_NEW_TOKENS, attempts=1)
    three = generate_rationales(tiny_slm, POOL, max_new_tokens=MAX_NEW_TOKENS, attempts=3)
    assert set(one.paths) < set(three.paths)
    assert three.wrong > one.wrong


def test_a_gold_answer_that_nobody_can_reach_is_dropped(tiny_llm: LanguageModel) -> None:
    impossible = [replace(POOL[0], answer="11")]
    found = generate_rationales(tiny_llm, impossible, max_new_tokens=MAX_NEW_TOKENS, attempts=2)
    assert found.paths == ()
    assert found.dropped == (POOL[0].sample_id,)
    assert found.wrong == 2


def test_the_tiny_llm_writes_right_paths_for_nearly_the_whole_pool(
    tiny_llm: LanguageModel,
) -> None:
    found = generate_rationales(tiny_llm, POOL, max_new_tokens=MAX_NEW_TOKENS, attempts=1)
    assert len(found.paths) >= 0.9 * len(POOL)


def test_no_samples_give_no_paths(tiny_slm: LanguageModel) -> None:
    found = generate_rationales(tiny_slm, [], max_new_tokens=4, attempts=1)
    assert (found.paths, found.dropped, found.wrong) == ((), (), 0)


def test_no_attempts_and_doubled_samples_are_refused(tiny_slm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="attempts: expected 1 or more"):
        generate_rationales(tiny_slm, POOL, max_new_tokens=4, attempts=0)
    with pytest.raises(ParameterError, match="twice"):
        generate_rationales(tiny_slm, [POOL[0], POOL[0]], max_new_tokens=4, attempts=1)
