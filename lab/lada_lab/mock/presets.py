"""The mock's studies: each a study file as its operator would write it, and what its machines need.

The numbers in `studies/` were chosen by trying a few on seed 0, whose held-out records therefore
have been looked at; run another seed for figures that have not. `docs/run-the-mock.md` says what
each preset is for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from lada_lab.worlds.federation import DataName
from lada_lab.worlds.sites import MAX_SITES, MIN_SITES
from lada_secure.allocation.strategies import strategy as allocation_strategy
from lada_secure.errors import ParameterError
from lada_server.settings import StudySettings

MAX_ROUNDS: Final = 100
PRESETS: Final = ("demo", "tiny", "chains", "families")
_STUDIES: Final = Path(__file__).with_name("studies")


class Preset(StudySettings):
    """A study, and how the mock's machines are set up.

    `data` is what `build_federation` makes. `rounds` is the default of `--rounds`. `site_slm` is
    the SLM of every site that `slms` does not name another one for. In the model references,
    {sites} and {seed} stand for the run's own. `physical_batch_size` and the threads (of a site, of
    the coordinator, whose LLM works while sites wait) change speed only.
    """

    name: str
    data: DataName
    valid_days: float = 1.0
    site_slm: str
    slms: dict[str, str] = Field(default_factory=dict)
    llm: str
    physical_batch_size: int
    threads: int = 1
    coordinator_threads: int = 1

    def slm_of(self, site: str) -> str:
        """Model reference of a site's SLM."""
        return self.slms.get(site, self.site_slm)

    @property
    def site_models(self) -> tuple[str, ...]:
        """Model references of all SLMs, each once."""
        return tuple(dict.fromkeys((self.site_slm, *self.slms.values())))

    def study_table(self) -> dict[str, Any]:
        """`study.toml`: the study as its operator proposes it."""
        return self.model_dump(include=set(StudySettings.model_fields), exclude_none=True)


def read_preset(name: str) -> Preset:
    """A preset as its file has it; `preset_for` makes a run's study of it."""
    return Preset.model_validate({**_table(name), "name": name})


def _table(name: str) -> dict[str, Any]:
    """A study file over the one that it is based on, table by table."""
    own = tomllib.loads((_STUDIES / f"{name}.toml").read_text(encoding="utf-8"))
    found = _table(own.pop("based_on")) if "based_on" in own else {}
    for key, value in own.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found


def by_strategy(preset: Preset, strategy: str) -> Preset:
    """The same study by another strategy, and by nothing beside it: all samples are worth alike.

    Raises: ParameterError: an unknown strategy.
    """
    name = allocation_strategy(strategy).name
    if name == preset.allocation.strategy:
        return preset
    other = {"strategy": name, "sample_value": None}
    return preset.model_copy(update={"allocation": preset.allocation.model_copy(update=other)})


def rivals_of(preset: Preset, strategies: Sequence[str]) -> tuple[Preset, ...]:
    """The same study by each of some other strategies.

    Raises: ParameterError: an unknown one, the study's own, or one twice.
    """
    names = [preset.allocation.strategy, *strategies]
    if len(set(names)) < len(names):
        raise ParameterError(
            f"--against: expected other strategies than {names[0]}, each once, got "
            f"{', '.join(strategies)}"
        )
    return tuple(by_strategy(preset, name) for name in strategies)


def preset_for(
    name: str, *, sites: int, rounds: int | None, seed: int, strategy: str | None = None
) -> Preset:
    """A preset with the caller's number of rounds, strategy and complete model references.

    Ledgers of different runs never meet, so the study's id need not be unique.

    Raises: ParameterError: an unknown preset or strategy, or numbers outside what a mock run
        allows.
    """
    if name not in PRESETS:
        raise ParameterError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    preset = read_preset(name)
    if not MIN_SITES <= sites <= MAX_SITES:
        raise ParameterError(
            f"--sites: expected {MIN_SITES} to {MAX_SITES}, got {sites}; a sum over fewer than "
            f"{MIN_SITES} sites is never opened, because it would say too much about one of them"
        )
    chosen = preset.rounds if rounds is None else rounds
    if not 1 <= chosen <= MAX_ROUNDS:
        raise ParameterError(f"--rounds: expected 1 to {MAX_ROUNDS}, got {chosen}")
    if seed < 0:
        raise ParameterError(f"--seed: expected 0 or more, got {seed}")
    complete = partial(str.format, sites=sites, seed=seed)
    if strategy is not None:
        preset = by_strategy(preset, strategy)
    return preset.model_copy(
        update={
            "study_id": f"{preset.study_id}-{seed}",
            "seed": seed,
            "rounds": chosen,
            "site_slm": complete(preset.site_slm),
            "slms": {site: complete(one) for site, one in preset.slms.items()},
            "llm": complete(preset.llm),
        }
    )
