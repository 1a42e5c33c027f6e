"""Losses against a slow, obvious version; adapters as sums; the real opening of such a sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sealed_sums import add_sealed
from tiny_baselines import CHARACTERS, lm_with_tokens
from torch.nn import functional

from lada_lab.baselines.adapter_sums import AdapterSumSettings, adapter_vector, mean_adapters
from lada_lab.baselines.logits import (
    TaughtRow,
    logit_loss,
    rationale_logits,
    taught_rows,
    top_logits,
)
from lada_lab.baselines.token_alignment import TokenAlignment
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.parameters import aggregation_parameters
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import adapter_weights, parse_adapter_tensors
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import LanguageModel

TEACHER = lm_with_tokens("teacher", CHARACTERS, seed=1)
LEARNER = lm_with_tokens("learner", CHARACTERS, seed=2)
TEXTS = [("3a\n", "a7\n7"), ("5bcd\n", "b1c4d0\n0"), ("9\n", "9")]


def one_by_one(lm: LanguageModel, prompt: str, path: str) -> torch.Tensor:
    """Logits about each target token, each from a forward pass over just what stands before it."""
    head, tail = lm.encode_prompt(prompt), lm.encode_rationale(path)
    with torch.no_grad():
        return torch.stack(
            [
                lm.model(input_ids=torch.tensor([head + tail[:at]])).logits[0, -1]
                for at in range(len(tail))
            ]
        )


def test_logits_in_a_padded_batch_are_those_of_one_token_after_the_other() -> None:
    found, targets = rationale_logits(TEACHER, [encode_row(TEACHER, *one) for one in TEXTS])
    expected = torch.cat([one_by_one(TEACHER, *one) for one in TEXTS])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
    assert targets.tolist() == [
        token for _, path in TEXTS for token in TEACHER.encode_rationale(path)
    ]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_cross_entropy_and_divergence_as_written(weight: float) -> None:
    rows = [encode_row(TEACHER, *one) for one in TEXTS]
    tops = top_logits(TEACHER, rows, k=3, batch_size=2)
    taught = [TaughtRow(*both) for both in zip(rows, tops, strict=True)]
    found = logit_loss(LEARNER, taught, weight=weight).item()
    losses = []
    for prompt, path in TEXTS:
        per_token = []
        teacher, learner = one_by_one(TEACHER, prompt, path), one_by_one(LEARNER, prompt, path)
        for told, heard, target in zip(
            teacher, learner, LEARNER.encode_rationale(path), strict=True
        ):
            q = functional.softmax(heard.double(), -1)
            best = sorted(range(len(told)), key=lambda at: -float(told[at]))[:3]
            total = sum(np.exp(float(told[at])) for at in best)
            divergence = 0.0
            for at in best:
                p = np.exp(float(told[at])) / total
                divergence += p * (np.log(p) - np.log(float(q[at])))
            entropy = -np.log(float(q[target]))
            per_token.append((1 - weight) * entropy + weight * divergence)
        losses.append(np.mean(per_token))
    assert found == pytest.approx(float(np.mean(losses)), rel=1e-4)


def test_the_divergence_from_itself_is_zero_with_all_tokens() -> None:
    rows = [encode_row(TEACHER, *one) for one in TEXTS]
    size = len(TEACHER.tokenizer.get_vocab())
    tops = top_logits(TEACHER, rows, k=size + 5, batch_size=8)
    assert all(one.tokens.shape[1] == size for one in tops)
    taught = [TaughtRow(*both) for both in zip(rows, tops, strict=True)]
    assert logit_loss(TEACHER, taught, weight=1.0).item() == pytest.approx(0.0, abs=1e-5)


def test_a_learner_with_other_tokens_gets_rows_of_its_own() -> None:
    pairs = lm_with_tokens("pairs", ["a7", *CHARACTERS], seed=3)
    taught = taught_rows(TEACHER, pairs, TEXTS, TokenAlignment(TEACHER, pairs), k=3, batch_size=8)
    for (prompt, path), (row, top) in zip(TEXTS, taught, strict=True):
        assert list(row.tokens) == pairs.encode_prompt(prompt) + pairs.encode_rationale(path)
        assert len(top.tokens) == row.target_length
        assert torch.allclose(top.probabilities.sum(-1), torch.ones(row.target_length))
    loss = logit_loss(pairs, taught, weight=0.5)
    assert torch.isfinite(loss)


def test_no_token_at_all_cannot_be_sent() -> None:
    with pytest.raises(ParameterError, match="k of at least 1"):
        top_logits(TEACHER, [encode_row(TEACHER, *TEXTS[0])], k=0, batch_size=1)


ADAPTED = [lm_with_tokens("slm", CHARACTERS, seed=seed, adapters=True) for seed in (4, 5, 6)]
SETTINGS = AdapterSumSettings(clip=1.0, scale=2**12)


def test_the_mean_of_adapters_is_exact_up_to_the_grid_and_cut_off_at_the_clip() -> None:
    shares = [adapter_weights(one) for one in ADAPTED]
    total = np.sum([adapter_vector(one, SETTINGS) for one in shares], axis=0)
    mean = parse_adapter_tensors(mean_adapters(total, sites=3, like=shares[0], settings=SETTINGS))
    for name, found in mean.items():
        parts = [parse_adapter_tensors(one)[name].clamp(-1.0, 1.0) for one in shares]
        expected = torch.stack(parts).mean(0)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.51 / SETTINGS.scale)
    assert max(abs(int(entry)) for entry in total) <= SETTINGS.sum_bound(sites=3)


def test_adapters_are_added_up_through_masks_encryption_and_one_opening() -> None:
    vectors = {
        f"site-{number}": adapter_vector(adapter_weights(one), SETTINGS)
        for number, one in enumerate(ADAPTED)
    }
    length = len(next(iter(vectors.values())))
    bound = SETTINGS.sum_bound(sites=3)
    params = aggregation_parameters(length=length, sum_bound=bound)
    keys = {name: MaskKey.generate() for name in vectors}
    key = AggregateKey.generate(params)
    sealing_key = parse_public_key(key.public_bytes, params)
    sealed = []
    for name, vector in vectors.items():
        mask = pairwise_mask(
            keys[name],
            name,
            {other: one.public_bytes for other, one in keys.items() if other != name},
            context=b"adapters",
            length=length,
            modulus=params.plain_modulus,
        )
        hidden = masked(vector, mask, bound=SETTINGS.site_bound, modulus=params.plain_modulus)
        sealed.append(seal(sealing_key, params, hidden))
    opened = key.open_sum(add_sealed(params, sealed))
    assert (opened == np.sum(list(vectors.values()), axis=0)).all()


def test_sums_of_another_model_or_beyond_the_bound_are_refused() -> None:
    own = adapter_weights(ADAPTED[0])
    vector = adapter_vector(own, SETTINGS)
    for opened, sites, message in (
        (vector[:-1], 1, "another model"),
        (vector, 0, "at least one site"),
        (vector.astype(np.float64), 1, "whole numbers"),
        (vector + 2 * SETTINGS.site_bound, 1, "beyond the bound"),
    ):
        with pytest.raises(ParameterError, match=message):
            mean_adapters(opened, sites=sites, like=own, settings=SETTINGS)
    with pytest.raises(ParameterError, match="clip above 0"):
        AdapterSumSettings(clip=0.0)
