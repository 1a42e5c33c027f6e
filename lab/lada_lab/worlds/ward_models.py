"""Real weights for the world of wards: SmolLM2, tuned on each reader's public text.

There is one real model that every machine can have without a model hub, so SLM and LLM are the
same weights, told apart by what they have read since. Made once per world and kept in a cache
folder. No site's data takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.smollm2 import SMOLLM2, export_smollm2
from lada_lab.worlds.wards import Reader, WardSettings, build_ward_world, public_text
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_folder, quiet_transformers
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

_VERSION = 1
_MANY_EPOCHS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class WardTuning:
    """How one model reads its public text. marked: share of questions with the mark in it."""

    reader: Reader
    texts: int = 480
    marked: float = 0.5
    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 4e-3
    rank: int = 16
    last_layers: int = 10


SLM_TUNING = WardTuning(reader="slm")
LLM_TUNING = WardTuning(reader="llm", texts=640)


def ward_model(settings: WardSettings, tuning: WardTuning, *, seed: int, cache_dir: Path) -> Path:
    """The folder of one model, tuned where it is not in the cache yet."""

    def build(folder: Path) -> None:
        lm = load_folder(export_smollm2(cache_dir), name=SMOLLM2)
        merged = _tuned(lm, settings, tuning, seed=seed)
        with quiet_transformers():
            merged.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, _model_name(settings, tuning, seed=seed), build)


def _model_name(settings: WardSettings, tuning: WardTuning, *, seed: int) -> str:
    """Name of a model's folder: all that it depends on."""
    shape = canonical_json(
        {
            "sites": settings.sites,
            "senses": settings.senses,
            **{name: getattr(tuning, name) for name in WardTuning.__slots__},
        }
    )
    return f"bench-wards-{tuning.reader}-{seed}-{sha256_hex(shape)[:12]}-v{_VERSION}"


def _tuned(lm: LanguageModel, settings: WardSettings, tuning: WardTuning, *, seed: int) -> Any:
    """Train adapters on the reader's text, on one thread, and merge them into the weights."""
    world = build_ward_world(settings, seed=seed)
    rng = np.random.default_rng([seed, 55, tuning.reader == "llm"])
    texts = public_text(world, tuning.reader, tuning.texts, rng, marked=tuning.marked)
    adapted = attach_adapters(
        lm,
        AdapterSettings(
            rank=tuning.rank,
            alpha=2.0 * tuning.rank,
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
            last_layers=tuning.last_layers,
            seed=seed,
        ),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tune_on_rationales(
            adapted,
            [
                RationaleExample(
                    example_id=f"public-{number:04d}",
                    prompt=prompt_of(text.question, ()),
                    path=rationale_of(text.answer, (), text.rationale),
                    rejected=None,
                )
                for number, text in enumerate(texts)
            ],
            (),
            TuningSettings(
                steps=tuning.steps,
                batch_size=tuning.batch_size,
                replay_batch_size=0,
                learning_rate=tuning.learning_rate,
                max_epochs=_MANY_EPOCHS,
                seed=seed,
                loss=LossSettings(contrastive_weight=0.0),
            ),
        )
    finally:
        torch.set_num_threads(threads)
    merged: Any = adapted.model
    return merged.merge_and_unload()
