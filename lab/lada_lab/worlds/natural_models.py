"""Data and models of a natural world: SmolLM2-135M as the SLM, Gemma-3-270M as the LLM.

Two families with tokenizers of their own, and an LLM that is often wrong. For facts both are as
their makers published them. No small model knows a code book by heart, so for coding the LLM has
read its manual: supervised fine-tuning on public worked examples, once for all worlds. Where the
SLM has read a part of it as well, the part is one of three draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lada_lab.worlds.coding import coding_collections, manual
from lada_lab.worlds.facts import fact_collections
from lada_lab.worlds.gemma3 import export_gemma3
from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.natural import NaturalSettings, coding_models, deal
from lada_lab.worlds.sites import Question, numbered, records_of
from lada_lab.worlds.smollm2 import SMOLLM2, export_smollm2
from lada_lab.worlds.study_data import BenchData
from lada_lab.worlds.tuned_llm import Tuning, tune
from lada_secure.errors import ParameterError
from lada_secure.models.loading import load_folder, quiet_transformers

# A model that has read the manual, or a share of its collections in one of a few draws.
CODER: Final = re.compile(
    r"(?P<base>smollm2-135m|gemma-3-270m)-coder(-(?P<share>0\.\d{1,3}|1)-(?P<reading>\d))?"
)
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


def natural_models(settings: NaturalSettings, *, seed: int, cache_dir: Path) -> NaturalModels:
    """Both models, converted or tuned where the cache does not have them."""
    if settings.source == "facts":
        return NaturalModels(slm=export_smollm2(cache_dir), llm=export_gemma3(cache_dir))
    slm, llm = coding_models(settings, seed=seed)
    return NaturalModels(
        slm=coding_model(slm, cache_dir=cache_dir), llm=coding_model(llm, cache_dir=cache_dir)
    )


def coding_model(name: str, *, cache_dir: Path) -> Path:
    """A model after it has read the manual, or a share of its collections; takes minutes once.

    Args: name: "smollm2-135m" alone, or MODEL-coder, or MODEL-coder-SHARE-READING.
    Returns: its folder, of that name in the cache.
    Raises: ParameterError: another name, or missing weights.
    """
    if name == SMOLLM2:
        return export_smollm2(cache_dir)
    parts = CODER.fullmatch(name)
    if parts is None:
        raise ParameterError(f"model {name!r}: expected MODEL-coder or MODEL-coder-SHARE-READING")
    examples = manual(per_collection=_EXAMPLES_PER_COLLECTION)
    read = tuple(examples)
    if parts["share"] is not None:
        read = slm_reading(read, float(parts["share"]), reading=int(parts["reading"]))
    export = export_smollm2 if parts["base"] == SMOLLM2 else export_gemma3
    return _reader(export, [examples[one] for one in read], cache_dir=cache_dir, name=name)


def slm_reading(collections: Sequence[str], share: float, *, reading: int) -> tuple[str, ...]:
    """The collections whose manual an SLM has read, at least one, in their order."""
    count = max(1, round(share * len(collections)))
    drawn = np.random.default_rng([reading, 64]).permutation(len(collections))[:count]
    return tuple(collections[at] for at in sorted(drawn))


def _reader(
    export: Callable[[Path], Path],
    examples: Iterable[Sequence[Question]],
    *,
    cache_dir: Path,
    name: str,
) -> Path:
    def build(folder: Path) -> None:
        base = export(cache_dir)
        lm = load_folder(base, name=base.name)
        asked = [one for some in examples for one in some]
        read = records_of(asked, numbered("manual", len(asked)), prefix="manual")
        merged = tune(lm, read, _TUNING, seed=0)
        with quiet_transformers():
            merged.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, name, build)
