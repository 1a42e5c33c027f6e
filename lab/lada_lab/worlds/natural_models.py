"""Data and models of a natural world: SmolLM2-135M as the SLM, Gemma-3-270M as the LLM.

Two families with tokenizers of their own, and an LLM that is often wrong. For facts both are as
their makers published them. No small model knows a code book by heart, so for coding the LLM has
read its manual: supervised fine-tuning on public worked examples, once for all worlds. Where the
SLM has read a part of it as well, the part is one of three draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lada_lab.worlds.coding import coding_collections, manual
from lada_lab.worlds.facts import fact_collections
from lada_lab.worlds.gemma3 import export_gemma3
from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.natural import NaturalSettings, deal
from lada_lab.worlds.sites import Question, numbered, records_of
from lada_lab.worlds.smollm2 import SMOLLM2, export_smollm2
from lada_lab.worlds.study_data import BenchData
from lada_lab.worlds.tuned_llm import Tuning, tune
from lada_secure.models.loading import load_folder, quiet_transformers

CODER: Final = "gemma-3-270m-coder-v1"
_EXAMPLES_PER_COLLECTION: Final = 8
# What an SLM has read takes minutes to teach; worlds share three such SLMs.
_READINGS: Final = 3
_TUNING: Final = Tuning(steps=100, last_layers=18, threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalModels:
    """Folders of both models."""

    slm: Path
    llm: Path


def natural_data(settings: NaturalSettings, *, seed: int) -> BenchData:
    """Everything a simulated study starts from; the same arguments give the same data."""
    if settings.source == "coding":
        return deal(coding_collections(), settings, seed=seed)
    return deal(fact_collections(seed=seed), settings, seed=seed)


def natural_models(settings: NaturalSettings, *, seed: int, cache_dir: Path) -> NaturalModels:
    """Both models, converted or tuned where the cache does not have them."""
    slm = export_smollm2(cache_dir)
    if settings.source == "facts":
        return NaturalModels(slm=slm, llm=export_gemma3(cache_dir))
    examples = manual(per_collection=_EXAMPLES_PER_COLLECTION)
    llm = _reader(export_gemma3(cache_dir), examples.values(), cache_dir / CODER)
    if settings.slm_read:
        reading = seed % _READINGS
        known = slm_reading(tuple(examples), settings.slm_read, reading=reading)
        name = f"{SMOLLM2}-coder-{settings.slm_read:g}-{reading}-v1"
        slm = _reader(slm, [examples[one] for one in known], cache_dir / name)
    return NaturalModels(slm=slm, llm=llm)


def slm_reading(collections: Sequence[str], share: float, *, reading: int) -> tuple[str, ...]:
    """The collections whose manual an SLM has read, at least one, in their order."""
    count = max(1, round(share * len(collections)))
    drawn = np.random.default_rng([reading, 64]).permutation(len(collections))[:count]
    return tuple(collections[at] for at in sorted(drawn))


def _reader(base: Path, examples: Iterable[Sequence[Question]], target: Path) -> Path:
    """A model after it has read worked examples; takes minutes once."""

    def build(folder: Path) -> None:
        lm = load_folder(base, name=base.name)
        asked = [one for some in examples for one in some]
        read = records_of(asked, numbered("manual", len(asked)), prefix="manual")
        merged = tune(lm, read, _TUNING, seed=0)
        with quiet_transformers():
            merged.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)

    return cached_folder(target.parent, target.name, build)
