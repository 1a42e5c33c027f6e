"""What a site keeps between rounds, all of it released values or public: picks, cells, history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lada_clients.net.outbox import write_atomically
from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.reward_model import RewardHistory, parse_history
from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError

_TRIALS = TypeAdapter(list[ClusterValuation])


class KnownRationale(BaseModel):
    """What a site knows of a path it was given: p under its released SLM, after training.

    sample: pool index. cell: cell of the grid. p: exp(-loss) in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sample: int = Field(ge=0)
    cell: int = Field(ge=0)
    p: float = Field(ge=0.0, le=1.0)


class JudgedRationale(BaseModel):
    """A path that the site's guide has judged.

    sample: pool index. cell: cell of the grid. path: the LLM's text. own_paths: what the SLM drew
    before any training. gain: by how much the newest guide favours the path, nats per token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sample: int = Field(ge=0)
    cell: int = Field(ge=0)
    path: str
    own_paths: list[str]
    gain: float = Field(allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMemory:
    """Small JSON files in the site's folder of one study."""

    folder: Path

    def history(self) -> RewardHistory:
        """Observations of the reward model so far."""
        value = self._read("filter-history.json")
        return RewardHistory() if value is None else parse_history(value)

    def keep_history(self, history: RewardHistory) -> None:
        """Replace the history."""
        self._write("filter-history.json", history.to_json())

    def picks(self, round_id: int) -> list[int] | None:
        """Pool indices picked in a round, or None where it has not picked yet."""
        value = self._read(f"picks-round-{round_id}.json")
        if value is None:
            return None
        if not isinstance(value, list) or any(type(one) is not int for one in value):
            raise ParameterError(f"{self.folder}: picks of round {round_id} are damaged")
        return [one for one in value if isinstance(one, int)]

    def keep_picks(self, round_id: int, picks: Sequence[int]) -> None:
        """Remember the picks of a round."""
        self._write(f"picks-round-{round_id}.json", list(picks))

    def picked_before(self, round_id: int) -> set[int]:
        """Pool indices picked in earlier rounds that this site has trained in.

        Only there was the demand opened with this site in it, and so the scores checked. Picks by
        other scores must not be seen in what is asked for later: a coordinator that sent a ladder,
        and then left this site out of the sum, would read them there.
        """
        trained = (one for one in range(round_id) if self._adapters(one).exists())
        return {pick for earlier in trained for pick in self.picks(earlier) or []}

    def known_paths(self) -> tuple[KnownRationale, ...]:
        """All paths received so far, by sample, with p as last measured."""
        value = self._read("known-paths.json")
        if value is None:
            return ()
        try:
            rows = value if isinstance(value, list) else [value]
            return tuple(KnownRationale.model_validate(row) for row in rows)
        except ValidationError as error:
            raise ParameterError(f"{self.folder}: known-paths.json is damaged: {error}") from error

    def keep_known_paths(self, found: Sequence[KnownRationale]) -> None:
        """Add paths; one of a sample that is known already replaces what was known of it."""
        known = {one.sample: one for one in (*self.known_paths(), *found)}
        self._write("known-paths.json", [known[sample].model_dump() for sample in sorted(known)])

    def judged_paths(self) -> tuple[JudgedRationale, ...]:
        """All paths that guides have judged, by sample, with the newest gain."""
        value = self._read("judged-paths.json")
        if value is None:
            return ()
        try:
            rows = value if isinstance(value, list) else [value]
            return tuple(JudgedRationale.model_validate(row) for row in rows)
        except ValidationError as error:
            raise ParameterError(f"{self.folder}: judged-paths.json is damaged: {error}") from error

    def keep_judged_paths(self, judged: Sequence[JudgedRationale]) -> None:
        """Replace what is known of judged paths."""
        rows = sorted(judged, key=lambda one: one.sample)
        self._write("judged-paths.json", [one.model_dump() for one in rows])

    def trials(self) -> tuple[ClusterValuation, ...]:
        """What the data valuations of all rounds so far said."""
        found: list[ClusterValuation] = []
        for path in sorted(self.folder.glob("trials-round-*.json")):
            try:
                found += _TRIALS.validate_python(self._read(path.name))
            except ValidationError as error:
                raise ParameterError(f"{path} is damaged: {error}") from error
        return tuple(found)

    def keep_trials(self, round_id: int, trials: Sequence[ClusterValuation]) -> None:
        """Remember the valuations of a round."""
        self._write(f"trials-round-{round_id}.json", [asdict(one) for one in trials])

    def guide(self, round_id: int) -> bytes | None:
        """The guide's adapter weights after a round, as DP-SGD released them."""
        path = self.folder / f"guide-round-{round_id}.safetensors"
        return path.read_bytes() if path.exists() else None

    def keep_guide(self, round_id: int, weights: bytes) -> None:
        """Keep the guide's weights after a round."""
        write_atomically(self.folder / f"guide-round-{round_id}.safetensors", weights)

    def keep_allocation(self, round_id: int, cells: Sequence[Json]) -> None:
        """Explain a round's allocation, for reports and `lada explain`; the first one stays."""
        name = f"allocation-round-{round_id}.json"
        if not (self.folder / name).exists():
            self._write(name, {"round": round_id, "cells": list(cells)})

    def excess_over_threshold(self, round_id: int) -> list[int] | None:
        """A round's confidence excesses, one per pool sample, or None before there are any."""
        value = self._read(f"advantages-round-{round_id}.json")
        if value is None:
            return None
        if not isinstance(value, list) or any(type(one) is not int for one in value):
            raise ParameterError(f"{self.folder}: advantages of round {round_id} are damaged")
        return [one for one in value if isinstance(one, int)]

    def keep_confidence_excess(self, round_id: int, vector: Sequence[int]) -> None:
        """Remember them: a retry of the secure aggregation sends the same vector."""
        self._write(f"advantages-round-{round_id}.json", list(vector))

    def adapters(self, round_id: int) -> bytes | None:
        """Adapter weights after a round."""
        path = self._adapters(round_id)
        return path.read_bytes() if path.exists() else None

    def keep_adapters(self, round_id: int, weights: bytes) -> None:
        """Keep the adapter weights after a round."""
        write_atomically(self._adapters(round_id), weights)

    def _adapters(self, round_id: int) -> Path:
        return self.folder / f"adapters-round-{round_id}.safetensors"

    def _read(self, name: str) -> Json:
        path = self.folder / name
        try:
            value: Json = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ParameterError(f"cannot read {path}: {error}") from error
        return value

    def _write(self, name: str, value: Json) -> None:
        write_atomically(self.folder / name, canonical_json(value) + b"\n")
