"""The loss of one example: values by hand, and no influence of its neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from trainer_doubles import example, small_model

from lada_secure.errors import ParameterError
from lada_secure.models.examples import TokenRow, encode_example, encode_row
from lada_secure.models.loss import LossSettings, example_losses
from lada_secure.models.rationale_scoring import RationaleScorer, per_token

PATH = torch.tensor([-1.0, -2.0])
OWN = torch.tensor([-1.5, -0.5])
BOTH = torch.tensor([True, True])
NO_LEAD = torch.zeros(2)


def losses(settings, *, own=OWN, has_own=BOTH, lead=NO_LEAD):
    return example_losses(PATH, own, has_own, lead, settings).tolist()


def test_without_weight_the_loss_is_cross_entropy_per_token():
    assert losses(LossSettings(contrastive_weight=0.0)) == [1.0, 2.0]


def test_margin_adds_what_is_missing_to_the_lead():
    # Leads are 0.25 and -1.5.
    found = losses(LossSettings(contrastive_weight=0.5), own=torch.tensor([-1.25, -0.5]))
    assert found == pytest.approx([1.0 + 0.5 * 0.25, 2.0 + 0.5 * 2.0])


def test_margin_is_silent_once_the_path_leads():
    assert losses(LossSettings(contrastive_weight=0.5), own=torch.tensor([-1.75, -0.5]))[0] == 1.0


def test_dpo_is_relative_to_the_reference():
    settings = LossSettings(contrastive_form="dpo", contrastive_weight=1.0)
    found = losses(settings, lead=torch.tensor([0.5, -0.5]))
    expected = [1.0 + math.log(2.0), 2.0 + math.log1p(math.exp(2.0))]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("form", ["dpo", "margin"])
def test_an_example_without_own_path_has_cross_entropy_alone(form):
    settings = LossSettings(contrastive_form=form, contrastive_weight=0.5)
    has_own = torch.tensor([True, False])
    found = losses(settings, own=torch.tensor([-0.5, -0.5]), has_own=has_own)
    assert found[1] == 2.0
    assert found[0] > 1.0


@pytest.mark.parametrize("form", ["dpo", "margin"])
def test_the_gradient_of_an_example_s_loss_is_zero_in_every_other_example(form):
    # Own paths lead, so that the margin is never reached.
    path = torch.linspace(-5.0, -4.0, 5, requires_grad=True)
    own = torch.linspace(-3.0, -2.0, 5, requires_grad=True)
    settings = LossSettings(contrastive_form=form, contrastive_weight=1.0)
    found = example_losses(path, own, torch.ones(5, dtype=torch.bool), torch.zeros(5), settings)
    for at in range(5):
        for gradient in torch.autograd.grad(found[at], (path, own), retain_graph=True):
            assert set(gradient.nonzero().flatten().tolist()) == {at}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrastive_form", "triplet"),
        ("contrastive_weight", -0.1),
        ("contrastive_weight", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ParameterError, match=field):
        LossSettings(**{field: value})


class TestScoring:
    def test_scores_are_the_joint_log_probabilities_of_the_targets(self):
        lm = small_model()
        rows = [encode_row(lm, "abc", "defg"), encode_row(lm, "hello world", "no")]
        with torch.no_grad():
            found = RationaleScorer(lm.model, device=torch.device("cpu"))(rows)
        for one, score in zip(rows, found.tolist(), strict=True):
            with torch.no_grad():
                logits = lm.model(input_ids=torch.tensor([one.tokens])).logits[0]
            logs = torch.log_softmax(logits, dim=-1)
            places = range(one.target_start, len(one.tokens))
            total = sum(float(logs[at - 1, one.tokens[at]]) for at in places)
            assert score == pytest.approx(total, abs=1e-4)
        assert float(per_token(found, rows)[1]) == pytest.approx(float(found[1]) / 3, abs=1e-5)

    def test_what_is_padded_beside_a_row_does_not_move_its_score(self):
        lm = small_model("gemma")
        scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
        short, long = encode_row(lm, "ab", "c"), encode_row(lm, "a" * 30, "b" * 20)
        with torch.no_grad():
            alone, beside = scorer([short])[0], scorer([long, short])[1]
        assert float(alone) == pytest.approx(float(beside), abs=1e-4)

    def test_a_long_row_loses_the_start_of_its_prompt_first(self):
        lm = small_model()
        row = encode_row(lm, "a" * 60 + "xyz", "b" * 20)
        assert len(row.tokens) == lm.max_tokens
        assert row.target_length == 21
        assert row.tokens[row.target_start - 3 : row.target_start] == tuple(lm.encode_prompt("xyz"))

    def test_a_target_that_fills_the_model_keeps_one_prompt_token(self):
        lm = small_model()
        row = encode_row(lm, "abc", "b" * 64)
        assert row == TokenRow(tokens=row.tokens, target_start=1)
        assert len(row.tokens) == 64

    def test_an_own_path_that_is_the_path_is_no_contrast(self):
        lm = small_model()
        one = example(1)
        same = type(one)(example_id="x", prompt=one.prompt, path="abc", rejected="abc")
        assert encode_example(lm, same, contrast=True).rejected is None
        assert encode_example(lm, one, contrast=True).rejected is not None
        assert encode_example(lm, one, contrast=False).rejected is None

    @pytest.mark.parametrize("text", ["", "\ud800", "\x00", "a" * 500, "<end>"])
    def test_any_text_can_be_encoded_and_fits(self, text):
        lm = small_model()
        for prompt, path in ((text, "abc"), ("abc", text), (text, text)):
            row = encode_row(lm, prompt, path)
            assert 1 <= row.target_start < len(row.tokens) <= lm.max_tokens
            assert row.tokens[-1] == lm.end_token
