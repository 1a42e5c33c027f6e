"""A released model is taken up again after a restart without paying twice."""

from __future__ import annotations

import pytest
import torch
from trainer_doubles import PLAN_HASH, approved_ledger, example, paid, small_model, units_of_sizes

from lada_secure.dpsgd.distillation import distil, released_adapters, training_spec
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import LedgerError
from lada_secure.models.adapters import AdapterSettings, attach_adapters, load_adapters

PRIVACY = DpSgdParameters(
    noise_multiplier=2.0,
    l2_clip_norm=0.5,
    sampling_probability=0.25,
    expected_units=2.0,
    steps=7,
    pool_gradients="public",
)
SETTINGS = TrainerSettings(pool_batch_size=3, physical_batch_size=6, steps_per_reservation=3)
SPEC = training_spec(PRIVACY, study_id="study", plan_hash=PLAN_HASH, round_id=1)


LORA = AdapterSettings(rank=2)
FORMS = {
    "lora": LORA,
    "core of the seed": AdapterSettings(rank=2, core="seed", train_a=False, seed=5),
    "core of the weights": AdapterSettings(rank=2, core="weights", train_a=False, seed=5),
}


def adapted(settings=LORA):
    return attach_adapters(small_model(), settings)


def again(lm, book):
    return released_adapters(lm, privacy=PRIVACY, settings=SETTINGS, book=book, spec=SPEC)


@pytest.mark.parametrize("form", FORMS)
def test_the_release_after_a_restart_is_the_one_before_and_costs_nothing(form):
    book, lm = approved_ledger(), adapted(FORMS[form])
    done = distil(
        lm,
        units=paid(units_of_sizes(1, 2)),
        pool=[example(50), example(51), example(52)],
        privacy=PRIVACY,
        settings=SETTINGS,
        book=book,
        spec=SPEC,
    )
    entries = book.entries()

    restarted = adapted(FORMS[form])
    load_adapters(restarted, done.adapters.value)
    found = again(restarted, book)
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(restarted.model(input_ids=tokens).logits, lm.model(input_ids=tokens).logits)
    assert not torch.equal(
        adapted(FORMS[form]).model(input_ids=tokens).logits, lm.model(input_ids=tokens).logits
    )

    assert found.value == done.adapters.value
    assert found.paid_by == done.adapters.paid_by
    assert book.entries() == entries


def test_a_run_that_was_not_finished_released_nothing_and_nothing_is_reserved_for_it():
    book = approved_ledger()
    before = book.entries()
    with pytest.raises(LedgerError, match="not finished"):
        again(adapted(), book)
    assert book.entries() == before
