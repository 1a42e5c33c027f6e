"""A site's state between steps on disk: one small JSON file, and adapters beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.reward_model import parse_history
from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.models.adapters import AdapterWeights
from lada_secure.storage.whole_files import read_file, write_atomically

_STATE = "site-state.json"


class _StoredState(BaseModel):
    """`site-state.json`. student, dp_reference: SHA-256 of the adapters beside it, or None.

    students: by round, SHA-256 of what training left in it; empty in states that were kept before
    there were any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    picks: dict[int, tuple[int, ...]]
    # None in states that were kept before there were any.
    fallbacks: dict[int, Fallback] = Field(default_factory=dict)
    trained: tuple[int, ...]
    rationales: tuple[KnownRationale, ...]
    history: object
    valuations: tuple[ClusterValuation, ...]
    excess: dict[int, tuple[int, ...]]
    student: str | None
    dp_reference: str | None
    students: dict[int, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMemory:
    """The site's folder of one study. All of it is released values or public."""

    folder: Path

    def load(self) -> SiteState:
        """The state that was kept last; an empty one before that.

        Raises: ParameterError: the file or the adapters that it names are damaged or missing.
        """
        path = self.folder / _STATE
        stored = self._stored()
        if stored is None:
            if any(self.folder.glob("adapters-round-*")):
                raise ParameterError(
                    f"{path} is missing beside the adapters that it speaks of; restore the folder "
                    "from its backup: without it the study would begin again"
                )
            return SiteState()
        last = stored.trained[-1] if stored.trained else None
        return SiteState(
            picks=stored.picks,
            fallbacks=stored.fallbacks,
            trained=stored.trained,
            rationales=stored.rationales,
            history=parse_history(json.loads(json.dumps(stored.history))),
            valuations=stored.valuations,
            excess=stored.excess,
            student=self._weights("adapters", last, stored.student),
            dp_reference=self._weights("dp-reference", last, stored.dp_reference),
        )

    def keep(self, state: SiteState) -> None:
        """Replace what was kept; adapters first, so that what a state names is there.

        A round's adapters keep their file: `adapters-round-N.safetensors`.
        """
        if state.trained:
            for name, weights in (
                ("adapters", state.student),
                ("dp-reference", state.dp_reference),
            ):
                path = self._path(name, state.trained[-1])
                if weights is not None and not _holds(path, weights):
                    write_atomically(path, weights.data)
        stored = _StoredState(
            picks=dict(state.picks),
            fallbacks=dict(state.fallbacks),
            trained=state.trained,
            rationales=state.rationales,
            history=state.history.to_json(),
            valuations=state.valuations,
            excess=dict(state.excess),
            student=None if state.student is None else state.student.sha256,
            dp_reference=None if state.dp_reference is None else state.dp_reference.sha256,
            students=self._students(state),
        )
        document = canonical_json(stored.model_dump(mode="json"))
        write_atomically(self.folder / _STATE, document + b"\n")

    def keep_allocation(
        self, round_id: int, cells: Sequence[Json], fallback: Fallback | None = None
    ) -> None:
        """Explain a round's allocation, for reports and `lada explain`."""
        told: dict[str, Json] = {"round": round_id, "cells": list(cells)}
        if fallback is not None:
            told["fallback"] = asdict(fallback)
        write_atomically(
            self.folder / f"allocation-round-{round_id}.json", canonical_json(told) + b"\n"
        )

    def student(self, round_id: int) -> tuple[AdapterWeights, bool]:
        """The SLM's adapters as a round's training left them.

        Returns: them, and whether the state says that they are these: one that was kept before
            states named every round's says so of the last round alone.
        Raises: ParameterError: not trained in that round, or the file is missing or another.
        """
        stored = self._stored()
        trained = () if stored is None else stored.trained
        if stored is None or round_id not in trained:
            there = ", ".join(map(str, trained)) or "none yet"
            raise ParameterError(
                f"--round {round_id}: {self.folder} has no finished training of it; finished "
                f"rounds: {there}"
            )
        last = {trained[-1]: stored.student} if stored.student is not None else {}
        digest = {**last, **stored.students}.get(round_id)
        if digest is None:
            return AdapterWeights(data=read_file(self._path("adapters", round_id))), False
        return self._named("adapters", round_id, digest), True

    def trained_rounds(self) -> tuple[int, ...]:
        """Rounds whose training has ended, in order. Raises: ParameterError: see `load`."""
        stored = self._stored()
        return () if stored is None else stored.trained

    def _stored(self) -> _StoredState | None:
        path = self.folder / _STATE
        try:
            stored = _StoredState.model_validate_json(path.read_bytes())
            parse_history(json.loads(json.dumps(stored.history)))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ParameterError) as error:
            raise ParameterError(f"{path} is damaged or cannot be read: {error}") from error
        return stored

    def _students(self, state: SiteState) -> dict[int, str]:
        """Hashes of all rounds' adapters: those that are known already, and the newest."""
        before = self._stored()
        known = {} if before is None else before.students
        kept = {at: known[at] for at in state.trained if at in known}
        if state.trained and state.student is not None:
            kept[state.trained[-1]] = state.student.sha256
        return kept

    def _weights(
        self, name: str, round_id: int | None, digest: str | None
    ) -> AdapterWeights | None:
        if digest is None or round_id is None:
            return None
        return self._named(name, round_id, digest)

    def _named(self, name: str, round_id: int, digest: str) -> AdapterWeights:
        path = self._path(name, round_id)
        weights = AdapterWeights(data=read_file(path))
        if weights.sha256 != digest:
            raise ParameterError(f"{path} is not what {_STATE} speaks of; restore both")
        return weights

    def _path(self, name: str, round_id: int) -> Path:
        return self.folder / f"{name}-round-{round_id}.safetensors"


def _holds(path: Path, weights: AdapterWeights) -> bool:
    return path.exists() and path.read_bytes() == weights.data
