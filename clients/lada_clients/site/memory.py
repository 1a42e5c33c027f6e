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
    """`site-state.json`. student, dp_reference: SHA-256 of the adapters beside it, or None."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMemory:
    """The site's folder of one study. All of it is released values or public."""

    folder: Path

    def load(self) -> SiteState:
        """The state that was kept last; an empty one before that.

        Raises: ParameterError: the file or the adapters that it names are damaged or missing.
        """
        path = self.folder / _STATE
        try:
            stored = _StoredState.model_validate_json(path.read_bytes())
            history = parse_history(json.loads(json.dumps(stored.history)))
        except FileNotFoundError:
            if any(self.folder.glob("adapters-round-*")):
                raise ParameterError(
                    f"{path} is missing beside the adapters that it speaks of; restore the folder "
                    "from its backup: without it the study would begin again"
                ) from None
            return SiteState()
        except (OSError, ValidationError, ParameterError) as error:
            raise ParameterError(f"{path} is damaged or cannot be read: {error}") from error
        last = stored.trained[-1] if stored.trained else None
        return SiteState(
            picks=stored.picks,
            fallbacks=stored.fallbacks,
            trained=stored.trained,
            rationales=stored.rationales,
            history=history,
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

    def _weights(
        self, name: str, round_id: int | None, digest: str | None
    ) -> AdapterWeights | None:
        if digest is None or round_id is None:
            return None
        path = self._path(name, round_id)
        weights = AdapterWeights(data=read_file(path))
        if weights.sha256 != digest:
            raise ParameterError(f"{path} is not what {_STATE} speaks of; restore both")
        return weights

    def _path(self, name: str, round_id: int) -> Path:
        return self.folder / f"{name}-round-{round_id}.safetensors"


def _holds(path: Path, weights: AdapterWeights) -> bool:
    return path.exists() and path.read_bytes() == weights.data
