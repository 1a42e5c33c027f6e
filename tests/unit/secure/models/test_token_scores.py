"""Scores of target tokens after a frozen head: cross-entropy's, without a batch's logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from trainer_doubles import ARCHITECTURES, example, small_model

from lada_lab.micro.dpsgd_models import BenchModel, build_model, make_tokens
from lada_lab.micro.dpsgd_variants import make_step
from lada_secure.models import token_scores as module
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import encode_row
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.models.token_scores import can_score_tokens, token_scores

TOKENS, WIDTH, VOCABULARY = 300, 24, 90


def frozen_head(*, bias=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(WIDTH, VOCABULARY, bias=bias).requires_grad_(False)


def case():
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn((TOKENS, WIDTH), generator=generator, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, targets, torch.randn(TOKENS, generator=generator)


def cross_entropy_scores(hidden, head, targets):
    return -functional.cross_entropy(head(hidden).float(), targets, reduction="none")


@pytest.mark.parametrize("at_once", [128, 300, 1000], ids=["in three", "in one", "more than there"])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_cross_entropy(monkeypatch, at_once, bias):
    monkeypatch.setattr(module, "_CPU_BYTES", 4 * VOCABULARY * at_once)
    head = frozen_head(bias=bias)
    found = []
    for score in (token_scores, cross_entropy_scores):
        hidden, targets, weights = case()
        scores = score(hidden, head, targets)
        (scores * weights).sum().backward()
        found.append((scores.detach(), hidden.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_product_is_rounded_as_the_head_s_own():
    head = frozen_head().bfloat16()
    found = []
    for score in (token_scores, cross_entropy_scores):
        hidden, targets, weights = case()
        scores = score(hidden if score is token_scores else hidden.bfloat16(), head, targets)
        assert scores.dtype == torch.float32
        (scores * weights).sum().backward()
        found.append((scores.detach(), hidden.grad))
    (ours, our_slope), (theirs, their_slope) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((our_slope - their_slope).norm()) < 0.01 * float(their_slope.norm())
    assert our_slope.dtype == torch.float32


def test_one_token_s_numbers_do_not_depend_on_the_others():
    head = frozen_head()
    hidden, targets, _ = case()
    token_scores(hidden, head, targets)[7].backward()
    assert set(hidden.grad.abs().sum(1).nonzero().flatten().tolist()) == {7}


def test_a_token_that_is_not_a_number_spoils_itself_alone():
    head = frozen_head()
    hidden, targets, _ = case()
    with torch.no_grad():
        hidden[5] = float("nan")
    scores = token_scores(hidden, head, targets)
    scores.sum().backward()
    assert torch.isnan(scores).nonzero().flatten().tolist() == [5]
    assert torch.isnan(hidden.grad).any(1).nonzero().flatten().tolist() == [5]


def test_very_unlikely_targets_keep_finite_scores_and_gradients():
    head = frozen_head()
    hidden, targets, _ = case()
    far = (hidden.detach() * 1e4).requires_grad_()
    scores = token_scores(far, head, targets)
    scores.sum().backward()
    assert bool(torch.isfinite(scores).all())
    assert float(scores.detach().min()) < -1e3
    assert bool(torch.isfinite(far.grad).all())


def test_it_is_differentiable_once_and_says_so():
    hidden, targets, _ = case()
    bent = token_scores(hidden, frozen_head(), targets).square().sum()
    slope = torch.autograd.grad(bent, hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def hooked(head):
    head.register_forward_hook(lambda *_: None)
    return head


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(3, 4),
        hooked(frozen_head()),
        nn.Sequential(frozen_head()),
        nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4).requires_grad_(False),
    ],
    ids=["trained", "with a hook", "not linear", "a linear layer of another kind"],
)
def test_other_heads_run_as_they_are(head):
    assert not can_score_tokens(head)
    assert can_score_tokens(frozen_head())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scorer_uses_it_and_gives_the_same_gradients_as_without(monkeypatch, architecture):
    calls = []

    def noted(*args):
        calls.append(len(args[0]))
        return token_scores(*args)

    monkeypatch.setattr("lada_secure.models.rationale_scoring.token_scores", noted)
    found = []
    for allowed in (True, False):
        monkeypatch.setattr(
            "lada_secure.models.rationale_scoring.can_score_tokens",
            can_score_tokens if allowed else lambda _: False,
        )
        lm = attach_adapters(small_model(architecture), AdapterSettings(rank=2))
        rows = [encode_row(lm, example(at).prompt, example(at).path) for at in range(4)]
        scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
        used = len(calls)
        scores = scorer(rows)
        scores.sum().backward()
        assert (len(calls) > used) == allowed
        trained = [one for one in lm.model.parameters() if one.requires_grad]
        found.append((scores.detach(), torch.cat([one.grad.flatten() for one in trained])))
    assert calls[-1] == sum(row.target_length for row in rows)
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def peak_of_tensors(work):
    """The most bytes of torch tensors that `work` holds at once, above what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiled:
        work()
    kept = peak = 0
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    for one in sorted(events, key=lambda one: one.start_ns()):
        kept += one.nbytes()
        peak = max(peak, kept)
    return peak


@pytest.mark.parametrize("variant", ["fused", "opacus"])
@pytest.mark.parametrize(("length", "batch"), [(64, 4), (64, 8), (128, 4)])
def test_a_private_step_holds_fewer_bytes_of_tensors_than_a_plain_one(variant, length, batch):
    shape = BenchModel(layers=2, hidden_size=64, vocabulary=2048, rank=4)
    tokens = make_tokens(shape.vocabulary, sequence_length=length, batch_size=batch)
    peaks = {}
    for name in ("plain", variant):
        step = make_step(name, build_model(shape))
        step(tokens)
        peaks[name] = peak_of_tensors(lambda step=step: step(tokens))
    assert 0 < peaks[variant] <= peaks["plain"]
