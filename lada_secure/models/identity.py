"""Which model this is, and which models a study or a site allows.

Two folders with one identity give the same outputs, up to floating-point rounding. A name says
nothing: whoever copies other weights into a folder keeps the name.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

_Text = Annotated[str, Field(max_length=200)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MAX_NAMED: Final = 50
_SHOWN: Final = 3
_SHOWN_CHARACTERS: Final = 40


class ModelIdentity(BaseModel):
    """A model that can be told from any other.

    architecture: as its configuration names it. parameters: numbers in its files of weights.
    licence, revision: what its owner says of them, perhaps empty; nothing here can check them.
    weights_sha256: of the configuration and every file of weights. tokenizer_sha256: of the
    tokenizer's files. template_sha256: of how questions are put into its words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    architecture: _Name
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    licence: _Text
    revision: _Text
    weights_sha256: _Digest
    tokenizer_sha256: _Digest
    template_sha256: _Digest

    def changes(self, other: ModelIdentity) -> tuple[str, ...]:
        """Names of the fields in which another identity differs."""
        return tuple(name for name, mine in self if mine != getattr(other, name))

    def sentence(self) -> str:
        """Architecture, size, and what its owner says of it, for people."""
        licence = f"licence {self.licence}" if self.licence else "no licence named"
        revision = f", revision {self.revision}" if self.revision else ""
        return f"{self.architecture}, {self.parameters:,} parameters, {licence}{revision}"


class SlmPlan(BaseModel):
    """Which models may be a site's SLM: part of a study plan, and of a site's own policy.

    families: architectures as configurations name them. max_parameters: 0 for any number.
    licences: texts, compared as they are. Empty for any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    families: Annotated[tuple[_Name, ...], Field(max_length=_MAX_NAMED)] = ()
    max_parameters: Annotated[int, Field(ge=0, le=10**15)] = 0
    licences: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
        Field(max_length=_MAX_NAMED),
    ] = ()

    @field_validator("families", "licences", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        """JSON and TOML have lists only; strict models take tuples."""
        return tuple(value) if isinstance(value, list) else value

    def faults(self, model: ModelIdentity) -> tuple[str, ...]:
        """Why a model may not be used; empty where it may."""
        found = []
        if self.families and model.architecture not in self.families:
            found.append(
                f"its architecture is {model.architecture}, allowed are {', '.join(self.families)}"
            )
        if 0 < self.max_parameters < model.parameters:
            found.append(
                f"it has {model.parameters:,} parameters, allowed are {self.max_parameters:,}"
            )
        if self.licences and model.licence not in self.licences:
            said = f"its licence is {model.licence!r}" if model.licence else "it names no licence"
            found.append(f"{said}, allowed are {', '.join(self.licences)}")
        return tuple(found)

    def sentence(self) -> str:
        """What is allowed, for people; it follows "The SLM may be "."""
        families = f"of {_some(self.families)}" if self.families else "of any architecture"
        size = f"at most {self.max_parameters:,} parameters" if self.max_parameters else "any size"
        licences = f"licence {_some(self.licences)}" if self.licences else "any licence"
        return f"{families}, {size}, {licences}"


def _some(names: tuple[str, ...]) -> str:
    """The first few names, in a bounded number of characters."""
    shown = [
        name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "..."
        for name in names[:_SHOWN]
    ]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} others")
    return " or ".join(shown)
