"""Model weights of a mock run: made or converted once, in child processes, into a cache folder.

The process that starts a run never loads torch. A folder in the cache is complete, so that a
second run starts at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lada_lab.mock.preparation import child_environment, lada_command
from lada_lab.mock.presets import Preset, preset_for
from lada_lab.mock.supervisor import Child, Supervisor, failure_text
from lada_lab.worlds.named_models import TUNED, is_made
from lada_secure.errors import ParameterError

CACHE_VARIABLE = "LADA_CACHE_DIR"


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """$LADA_CACHE_DIR, else `lada-secure` in the user's cache folder (XDG)."""
    named = environment.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lada-secure"


def missing_models(preset: Preset, cache_dir: Path) -> tuple[str, ...]:
    """References of the preset's models that are not in the cache yet."""
    wanted = dict.fromkeys((preset.slm, preset.llm))
    return tuple(one for one in wanted if not is_made(one, cache_dir=cache_dir))


def prepare_missing(
    preset: Preset, supervisor: Supervisor, *, cache_dir: Path, environment: Mapping[str, str]
) -> None:
    """Make whatever the preset misses, each model in a process of its own.

    Models that are trained from others come after those.

    Raises: ParameterError: one of them cannot be made here; its own words.
    """
    missing = missing_models(preset, cache_dir)
    for derived in (False, True):
        _make_all(
            [one for one in missing if (TUNED.fullmatch(one) is not None) is derived],
            supervisor,
            cache_dir=cache_dir,
            environment=environment,
        )


def _make_all(
    references: Sequence[str],
    supervisor: Supervisor,
    *,
    cache_dir: Path,
    environment: Mapping[str, str],
) -> None:
    with tempfile.TemporaryDirectory(prefix="lada-prepare-") as folder:
        for number, reference in enumerate(references):
            supervisor.start(
                Child(
                    name=f"weights of {reference}",
                    arguments=lada_command(
                        *("mock", "prepare", "--model", reference, "--cache-dir", cache_dir)
                    ),
                    log=Path(folder) / f"{number}.txt",
                    environment=environment,
                )
            )
        for ended in supervisor.wait_until_ended():
            if ended.status != 0:
                supervisor.stop()
                raise ParameterError(failure_text(ended, with_log=False))


def prepare_preset(name: str, *, sites: int, seed: int, cache_dir: Path) -> tuple[str, ...]:
    """Make what a preset misses, all models side by side.

    Returns: the references of the models that were made.
    Raises: ParameterError: a wrong request, or a model that cannot be made here.
    """
    preset = preset_for(name, sites=sites, rounds=None, seed=seed)
    missing = missing_models(preset, cache_dir)
    with Supervisor() as supervisor:
        prepare_missing(
            preset, supervisor, cache_dir=cache_dir, environment=child_environment(os.environ)
        )
    return missing
