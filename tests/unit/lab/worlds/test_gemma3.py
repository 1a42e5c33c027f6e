"""Gemma-3-270M as it is: what it knows of the demo's held-out records, with and without its BOS."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.gemma3 import GEMMA3, gemma_terms
from lada_lab.worlds.named_models import make_model
from lada_lab.worlds.smollm2 import SMOLLM2
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle
from lada_secure.models.evaluation import accuracy
from lada_secure.models.loading import LanguageModel, load_folder

# Percent right at hospital-a, hospital-b, bank-a (65, 59, 66 records of seed 0), as measured
# elsewhere. The models and the records are fixed: what differs is rounding, on a record or two.
WITH_BOS = (52.3, 62.7, 71.2)
WITHOUT_BOS = (40.0, 40.7, 40.9)
SMOLLM2_ALONE = (55.4, 59.3, 48.5)
TOLERANCE = 3.5


def right(lm: LanguageModel) -> list[float]:
    sites = build_federation("demo", sites=3, seed=0).sites.values()
    return [100 * accuracy(lm, site.held_out, batch_size=16) for site in sites]


def cached(name: str, tmp_path: Path) -> LanguageModel:
    cache = Path(os.environ.get("LADA_CACHE_DIR", tmp_path))
    return load_folder(make_model(name, cache_dir=cache), name=name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gemma_is_called_with_its_bos_and_loses_what_it_knows_without(tmp_path: Path) -> None:
    try:
        gemma_terms()
    except ParameterError as error:
        pytest.skip(str(error))
    lm = cached(GEMMA3, tmp_path)
    assert lm.style.head == (lm.tokenizer.bos_token_id,)
    assert right(lm) == pytest.approx(WITH_BOS, abs=TOLERANCE)
    bare = replace(lm, style=CallingStyle())
    assert right(bare) == pytest.approx(WITHOUT_BOS, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_has_no_bos_of_its_own_and_knows_what_it_did(tmp_path: Path) -> None:
    lm = cached(SMOLLM2, tmp_path)
    assert lm.style.head == ()
    assert right(lm) == pytest.approx(SMOLLM2_ALONE, abs=TOLERANCE)
