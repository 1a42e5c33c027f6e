"""The site's own SLM: whether plan and policy allow it, and that it stays what was signed for.

Nothing here loads a weight or looks at a record. A file counts as unchanged by its marks in the
file system, see `FileHashes`: a look costs nothing, and may come before every step that spends.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.plan import StudyPlan
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.fingerprints import FileHashes, identify
from lada_secure.models.identity import ModelIdentity

HASHES_FILE: Final = "model-hashes.json"
_SHOWN: Final = 12


class ModelChanged(LadaError):
    """The SLM is not the one that this site has signed for; nothing was reserved or sent."""

    code = "model_changed"


def file_hashes(settings: SiteSettings) -> FileHashes:
    """Hashes of model files that the site's state folder keeps, once it is there."""
    there = settings.state_dir.is_dir()
    return FileHashes(settings.state_dir / HASHES_FILE if there else None)


def known_hashes(settings: SiteSettings) -> FileHashes:
    """The same for whoever must not write there: what is new is hashed and not kept."""
    there = settings.state_dir.is_dir()
    return FileHashes.reading(settings.state_dir / HASHES_FILE) if there else FileHashes(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSlm:
    """The SLM that the settings name, as its files stand now."""

    settings: SiteSettings
    hashes: FileHashes

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.settings.slm_folder

    def identity(self) -> ModelIdentity:
        """Which model it is. Raises: ParameterError: no model folder, or it cannot be read."""
        settings, model = self.settings, self.settings.model
        return identify(
            self.folder,
            self.hashes,
            template=settings.called,
            licence=model.licence,
            revision=model.revision,
        )

    def allowed(self, plan: StudyPlan, policy: SitePolicy) -> ModelIdentity:
        """Its identity, once plan and policy both allow it.

        Raises: ParameterError: all that they have against it.
        """
        found = self.identity()
        faults = slm_faults(found, plan, policy)
        if faults:
            raise ParameterError(
                f"the SLM {self.folder} cannot take part: {'; '.join(faults)}. Name another one in "
                "[model] of the settings; nothing was promised or spent"
            )
        return found

    def check(self, signed: ModelIdentity) -> None:
        """Check that it is the model that this site has signed for.

        Raises: ModelChanged: names what changed. ParameterError: it cannot be read.
        """
        now = self.identity()
        changed = [
            f"{name} was {_short(getattr(signed, name))} and is {_short(getattr(now, name))}"
            for name in signed.changes(now)
        ]
        if changed:
            raise ModelChanged(
                f"the SLM {self.folder} is not the one that this study began with: "
                f"{'; '.join(changed)}. Nothing more was reserved or sent. Put the model back and "
                "start again; or leave the study with `lada site withdraw`"
            )


def slm_faults(model: ModelIdentity, plan: StudyPlan | None, policy: SitePolicy) -> tuple[str, ...]:
    """What plan and policy have against a model; the policy alone where there is no plan yet."""
    return (
        *(f"{one} (by the plan)" for one in (plan.slm.faults(model) if plan else ())),
        *(f"{one} (by the policy)" for one in policy.model.faults(model)),
    )


def describe_slm(model: ModelIdentity) -> tuple[str, ...]:
    """What the acceptance says of the SLM, to everybody in the study, in plain words."""
    return (
        f"The SLM of this site is {model.sentence()}.",
        "Accepting tells every party of the study which one it is, by hashes of its weights "
        f"({_short(model.weights_sha256)}...), tokenizer ({_short(model.tokenizer_sha256)}...) and "
        f"template ({_short(model.template_sha256)}...). It must never have been trained on the "
        "records.",
    )


def _short(value: object) -> str:
    text = str(value)
    return text[:_SHOWN] if len(text) == 64 else text or "empty"
