"""Models that are measured or asked side by side, one in memory at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from lada_clients.site.results.evaluation import AFTER, BEFORE
from lada_clients.site.results.study import SiteStudy, open_study
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import load_adapters, load_lora
from lada_secure.models.loading import LanguageModel, load_folder, quiet_transformers

_PROVENANCE = "lada.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model in memory until the next one is taken. adapters_sha256: None where it has none."""

    name: str
    adapters_sha256: str | None
    lm: LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What is set beside before and after.

    rounds: of the same study. studies: others of this site, by id, with their last round. folders:
    of adapters in PEFT's format or of full models.
    """

    rounds: tuple[int, ...] = ()
    studies: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()


def check_others(study: SiteStudy, others: Others) -> None:
    """Before a model is loaded. Raises: ParameterError: one of them cannot be there."""
    for round_id in others.rounds:
        study.round(round_id)
    for name in others.studies:
        open_study(study.settings_path, name).round(None)
    for folder in others.folders:
        _kind_of(study, folder)


def candidates(
    study: SiteStudy, round_id: int, others: Others | None = None
) -> Iterator[Candidate]:
    """The SLM before the study, after a round, and whatever is set beside them, in this order.

    Every one is asked in the study's answer form.

    Raises: ParameterError: a model cannot be loaded, or is not the one that was signed for.
    """
    wanted = others or Others()
    lm = study.open_model()
    yield Candidate(name=BEFORE, adapters_sha256=None, lm=lm)
    for number, name in (
        (round_id, AFTER),
        *((one, f"round {one}") for one in wanted.rounds),
    ):
        weights = study.adapters(number)
        load_adapters(lm, weights)
        yield Candidate(name=name, adapters_sha256=weights.sha256, lm=lm)
    del lm
    for study_id in wanted.studies:
        other = open_study(study.settings_path, study_id)
        last = other.round(None)
        weights, lm = other.adapters(last), other.open_model().with_form(study.plan.form)
        load_adapters(lm, weights)
        yield Candidate(name=f"{study_id} round {last}", adapters_sha256=weights.sha256, lm=lm)
        del lm
    for folder, name in zip(wanted.folders, folder_names(wanted.folders), strict=True):
        yield Candidate(name=name, adapters_sha256=None, lm=_opened(study, folder))


def folder_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder, without the way to it: names stand in files that are kept."""
    last = [folder.resolve().name for folder in folders]
    taken = Counter((BEFORE, AFTER, *last))
    return [
        name if taken[name] == 1 else f"{name} ({number})"
        for number, name in enumerate(last, start=1)
    ]


def _opened(study: SiteStudy, folder: Path) -> LanguageModel:
    """A model from a folder, called as the settings call the SLM."""
    model, adapters = study.settings.model, _kind_of(study, folder)
    bare = load_folder(
        study.settings.slm_folder if adapters else folder,
        name=str(folder),
        calling=model.calling,
        placement=model.placement,
    ).with_form(study.plan.form)
    if not adapters:
        return bare
    try:
        with quiet_transformers():
            adapted = load_lora(bare.model, folder)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParameterError(
            f"{folder}: these adapters do not fit on {study.settings.slm_folder}: {first}"
        ) from error
    return replace(bare, model=adapted)


def _kind_of(study: SiteStudy, folder: Path) -> bool:
    """Whether a folder holds adapters, or else a full model.

    Raises: ParameterError: neither, pickled weights, or made for another base model.
    """
    if not (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            return False
        raise ParameterError(
            f"{folder}: expected a folder with adapter_config.json and adapter_model.safetensors, "
            "or with a full model"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise ParameterError(
            f"{folder}: has no adapter_model.safetensors; pickled weights are not read, because "
            "that can run code"
        )
    provenance = folder / _PROVENANCE
    if provenance.is_file():
        try:
            made_for = json.loads(provenance.read_bytes())["slm"]["weights_sha256"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ParameterError(f"{provenance}: cannot be read: {error!r}") from error
        if made_for != study.slm.weights_sha256:
            raise ParameterError(
                f"{folder}: its base model has the weights {str(made_for)[:16]}, the SLM here has "
                f"{study.slm.weights_sha256[:16]}; name settings with that base model"
            )
    return True
