"""Data and models of a natural world: SmolLM2-135M as the SLM, Gemma-3-270M as the LLM.

Two families with tokenizers of their own. On facts both are as their makers published them, and the
LLM is often wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_lab.worlds.facts import fact_collections
from lada_lab.worlds.gemma3 import export_gemma3
from lada_lab.worlds.natural import NaturalSettings, deal
from lada_lab.worlds.smollm2 import export_smollm2
from lada_lab.worlds.study_data import BenchData


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalModels:
    """Folders of both models."""

    slm: Path
    llm: Path


def natural_data(settings: NaturalSettings, *, seed: int) -> BenchData:
    """Everything a simulated study starts from; the same arguments give the same data."""
    return deal(fact_collections(seed=seed), settings, seed=seed)


def natural_models(settings: NaturalSettings, *, cache_dir: Path) -> NaturalModels:
    """Both models, converted where the cache does not have them."""
    return NaturalModels(slm=export_smollm2(cache_dir), llm=export_gemma3(cache_dir))
