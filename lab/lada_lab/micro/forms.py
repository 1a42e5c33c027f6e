"""Answer forms on a real model, over the demo's public pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lada_lab.machine import machine
from lada_lab.worlds.demo import build_demo
from lada_secure.errors import ParameterError
from lada_secure.models.form_probe import measure_forms
from lada_secure.models.loading import load_language_model
from lada_secure.models.public_questions import spread


def run_forms(
    *, model: str, cache_dir: Path, samples: int, max_new_tokens: int, batch_size: int = 16
) -> dict[str, Any]:
    """Measure a model's answer forms on evenly spaced questions of the demo's pool.

    Returns: JSON-ready: per form the accuracy with its standard error and the share of written
        paths that can be read, in percent; the recommended form; and what it was measured on.
    Raises: ParameterError: more samples than the pool has, or an unreadable model.
    """
    pool = build_demo(sites=3, seed=0).pool
    if not 1 <= samples <= len(pool):
        raise ParameterError(f"--samples: expected 1 to {len(pool)}, the pool's, got {samples}")
    lm = load_language_model(model, cache_dir=cache_dir)
    started = time.perf_counter()
    found = measure_forms(
        lm, spread(pool, samples), batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    cores, system, python = machine()
    return {
        "forms": {one.form: one.figures() for one in found.results},
        "recommended": found.recommended,
        "model": model,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "wall_s": round(time.perf_counter() - started, 1),
        "machine": f"{cores} cores, {system}, Python {python}",
    }
