"""Data and models of a natural world: SmolLM2-135M as the SLM, Gemma-3-270M as the LLM.

Two families with tokenizers of their own, and an LLM that is often wrong. For facts both are as
their makers published them. No small model knows a code book by heart, so for coding the LLM has
read its manual: supervised fine-tuning on public worked examples, once for all worlds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_lab.worlds.coding import coding_collections, manual
from lada_lab.worlds.facts import fact_collections
from lada_lab.worlds.gemma3 import GEMMA3, export_gemma3
from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.natural import NaturalSettings, deal
from lada_lab.worlds.sites import numbered, records_of
from lada_lab.worlds.smollm2 import export_smollm2
from lada_lab.worlds.study_data import BenchData
from lada_lab.worlds.tuned_llm import Tuning, tune
from lada_secure.models.loading import load_folder, quiet_transformers

CODER: Final = "gemma-3-270m-coder-v1"
_EXAMPLES_PER_COLLECTION: Final = 8
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


def natural_models(settings: NaturalSettings, *, cache_dir: Path) -> NaturalModels:
    """Both models, converted or tuned where the cache does not have them."""
    coding = settings.source == "coding"
    return NaturalModels(
        slm=export_smollm2(cache_dir),
        llm=_coder(cache_dir) if coding else export_gemma3(cache_dir),
    )


def _coder(cache_dir: Path) -> Path:
    """Gemma after it has read the manual; takes minutes once."""

    def build(folder: Path) -> None:
        lm = load_folder(export_gemma3(cache_dir), name=GEMMA3)
        examples = manual(per_collection=_EXAMPLES_PER_COLLECTION)
        read = records_of(examples, numbered("manual", len(examples)), prefix="manual")
        merged = tune(lm, read, _TUNING, seed=0)
        with quiet_transformers():
            merged.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, CODER, build)
