"""Model weights of a mock run: made or converted once, in child processes, into a cache folder.

The process that starts a run never loads torch. A folder in the cache is complete, so that a
second run starts at once.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lada_lab.mock.preparation import child_environment, lada_command
from lada_lab.mock.presets import Preset
from lada_lab.mock.supervisor import Child, ChildFailed, Supervisor, failure_text
from lada_lab.worlds.named_models import is_derived, is_made
from lada_secure.errors import ParameterError


def missing_models(preset: Preset, cache_dir: Path) -> tuple[str, ...]:
    """References of the preset's models that are not in the cache yet."""
    wanted = dict.fromkeys((*preset.site_models, preset.llm))
    return tuple(name for name in wanted if not is_made(name, cache_dir=cache_dir))


def prepare_missing(preset: Preset, supervisor: Supervisor, *, cache_dir: Path) -> None:
    """Make whatever the preset misses, each model in a process of its own.

    Models that are trained from others come after those.

    Raises: ParameterError: one of them cannot be made here; its own words.
    """
    missing = missing_models(preset, cache_dir)
    with tempfile.TemporaryDirectory(prefix="lada-prepare-") as folder:
        for derived in (False, True):
            children = [
                Child(
                    name=f"weights of {reference}",
                    arguments=lada_command(
                        *("mock", "prepare", "--model", reference, "--cache-dir", cache_dir)
                    ),
                    log=Path(folder) / f"{number}.txt",
                    environment=child_environment(os.environ),
                )
                for number, reference in enumerate(missing)
                if is_derived(reference) is derived
            ]
            try:
                supervisor.run_all(children)
            except ChildFailed as error:
                raise ParameterError(failure_text(error.ended, with_log=False)) from error
