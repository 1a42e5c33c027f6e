"""What the tiny models know, and that they are made from public text alone."""

from __future__ import annotations

import numpy as np
import torch

from lada_lab.worlds.arithmetic import COMMON, DOMAIN_SYMBOLS, build_world
from lada_lab.worlds.character_models import character_tokenizer
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.tiny_models import pretrain, pretraining_of, public_templates
from lada_secure.data.records import PoolSample
from lada_secure.models.evaluation import accuracy
from lada_secure.models.loading import LanguageModel

TINY = build_federation("tiny", sites=3, seed=0)


def test_the_tokenizer_takes_one_token_per_character_and_gives_the_text_back() -> None:
    tokenizer = character_tokenizer()
    text = "".join([*map(str, range(10)), *COMMON, *DOMAIN_SYMBOLS, "\n"])
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(set(tokens)) == len(text)
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text


def test_the_llm_knows_the_trade_and_the_slm_does_not(
    tiny_slm: LanguageModel, tiny_llm: LanguageModel
) -> None:
    for site in TINY.sites.values():
        assert accuracy(tiny_llm, site.held_out, batch_size=80) >= 0.85
        assert accuracy(tiny_slm, site.held_out, batch_size=80) <= 0.45


def test_the_slm_knows_what_each_common_operator_does(tiny_slm: LanguageModel) -> None:
    world = build_world(sites=3, seed=0)
    routine = [
        PoolSample(
            sample_id=f"{start}{symbol}",
            question=f"{start}{symbol}",
            choices=(),
            answer=world.solve(start, symbol)[1],
        )
        for symbol in COMMON
        for start in range(10)
    ]
    assert accuracy(tiny_slm, routine, batch_size=64) >= 0.8


def test_pretraining_text_never_is_a_private_template() -> None:
    world = build_world(sites=3, seed=0)
    rng = np.random.default_rng(0)
    seen = {
        template for steps in (3, 4) for template in public_templates(world, steps, 20_000, rng)
    }
    assert not seen & world.private_templates
    # The refusal is not empty: without it, private templates of three operators would turn up.
    assert len({one for one in seen if len(one) == 3}) > 1_500


def test_training_a_tiny_model_repeats_and_leaves_the_global_state_alone() -> None:
    world = build_world(sites=3, seed=1)
    settings = pretraining_of("slm", sites=3, steps=4)
    before = torch.random.get_rng_state()
    first, again = (pretrain(world, settings, seed=1) for _ in range(2))
    other = pretrain(world, settings, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [one.model.embed_tokens.weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
