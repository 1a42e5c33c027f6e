"""The undisturbed evaluation: what coordinator and sites must have chosen, computed once more.

Noise is fresh in every run, so two runs cannot be compared message by message. What can be: given
what a disturbed run released (noised statistics, adapters, the LLM's accepted updates), everything
else follows without chance. Here it is computed in one process, in order, with nothing in the way,
and compared with what the parties did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from lada_clients.site.ledger.store import open_ledger_reader
from lada_clients.site.memory import SiteMemory
from lada_clients.site.public_material import parse_received_rationales
from lada_clients.site.settings import read_site_settings
from lada_protocol.identity.roster import Roster, parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.llm_transfer import (
    SiteRationale,
    inquiry_bytes,
    llm_version,
    parse_site_rationales,
)
from lada_protocol.settings import parse_settings
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.messages import OpenedBody, PathsBody, parse_body
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.arrays import FloatArray
from lada_secure.data.records import read_pool
from lada_secure.method.mechanisms import cell_grid, statistics_parameters
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import site_choice
from lada_secure.method.site_round import confidence_excess, pick
from lada_secure.method.site_state import SiteState
from lada_secure.method.site_training import TrainedRound, close, consider
from lada_secure.models.adapters import AdapterWeights, load_adapters
from lada_secure.models.embedding import embedder
from lada_secure.models.loading import load_language_model
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import ReleaseKey
from lada_secure.privacy.release.noised_vectors import parse_vector
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.coordinator import open_llm
from lada_server.study.llm_files import LlmFiles
from lada_server.study.llm_transfer import improve_llm, samples_to_ask
from lada_server.study.proposal import Study, prepare_study
from lada_server.study.teacher import Teacher, parse_rationales, rationales_payload

from .federation import Federation
from .sight import reading


@dataclass(frozen=True)
class Record:
    """Everything that a run left behind, read only."""

    federation: Federation

    @cached_property
    def roster(self) -> Roster:
        """The roster."""
        return parse_roster(self.federation.layout.roster.read_bytes())

    @cached_property
    def plan(self) -> StudyPlan:
        """The plan that the parties worked by."""
        return parse_plan((self.federation.layout.coordinator.state / "plan.json").read_bytes())

    @cached_property
    def index(self) -> MessageIndex:
        """Every message on the board."""
        index = MessageIndex(self.plan, self.roster)
        with reading(self.federation.layout.coordinator.state / "board.sqlite") as connection:
            rows = connection.execute(
                "select header, signature from board_messages order by sequence"
            ).fetchall()
        for header, signature in rows:
            index.add(parse_envelope(header, signature, roster=self.roster))
        return index

    def payload(self, message: Envelope) -> bytes:
        """The payload of a message."""
        digest = message.message_hash
        folder = self.federation.layout.coordinator.state / "payloads" / digest[:2]
        return (folder / digest).read_bytes() if message.header.payload_bytes else b""

    def find(self, kind: Kind, round_id: int = 0, *, sender: str = "coordinator") -> Envelope:
        """The one message of this kind, sender and round.

        Raises: LookupError: there is none.
        """
        for one in self.index:
            if (one.kind, one.header.sender, one.header.round_id) == (kind, sender, round_id):
                return one
        raise LookupError(f"round {round_id}: no {kind.value} of {sender} on the board")

    def opened(self, round_id: int, purpose: str) -> tuple[tuple[str, ...], list[int]]:
        """The cohort of a secure aggregation, and the sum."""
        message = self.index.opened(round_id, purpose)
        sites = tuple(sorted(parse_body(message, OpenedBody).contributions))
        return sites, [int(one) for one in json.loads(self.payload(message))]

    def state(self, site: str) -> Path:
        """A site's state folder."""
        return self.federation.layout.site(site).state

    def kept(self, site: str, name: str) -> Any:
        """One of a site's small files; None where there is none."""
        path = self.federation.layout.site(site).study / name
        return json.loads(path.read_bytes()) if path.exists() else None

    def released(self, site: str, round_id: int, purpose: str, chunk: int = 0) -> bytes:
        """The output that stands in a site's ledger.

        Raises: LookupError: it was never committed.
        """
        (path,) = self.state(site).glob("ledger-*.sqlite")
        with open_ledger_reader(path) as ledger:
            output = ledger.stored_output(
                ReleaseKey(
                    study_id=self.plan.study_id, round_id=round_id, purpose=purpose, chunk=chunk
                )
            )
        if output is None:
            raise LookupError(f"{site}, round {round_id}: {purpose} {chunk} was never committed")
        return output


@dataclass(frozen=True)
class CoordinatorAgain:
    """The coordinator's side, computed from the record alone; its state folder is not written."""

    record: Record
    scratch: Path

    @cached_property
    def study(self) -> Study:
        """The study as the coordinator prepared it."""
        layout = self.record.federation.layout
        root = layout.coordinator.root
        settings = parse_settings((root / "study.toml").read_bytes(), StudySettings, where="study")
        pool = read_pool(root / "pool.jsonl")
        kept = self.scratch / "plan.json"
        kept.write_bytes(self.record.plan.to_bytes())
        return prepare_study(
            settings,
            pool=pool,
            roster=self.record.roster,
            now=datetime.now(UTC),
            kept_plan=kept,
        )

    @cached_property
    def settings(self) -> ServerSettings:
        """The coordinator's settings."""
        folder = self.record.federation.layout.coordinator
        return parse_settings(folder.settings.read_bytes(), ServerSettings, where="server").beside(
            folder.root
        )

    def teacher(self) -> Teacher:
        """A freshly loaded LLM."""
        settings = self.settings
        return Teacher(
            self.study,
            open_llm(settings),
            files=LlmFiles(folder=settings.state_dir / "llm"),
            progress=lambda *_: None,
        )

    def features(self, round_id: int) -> FloatArray:
        """The private matrix of blind scoring of a round."""
        return self._view(round_id)[1].features

    def _view(self, round_id: int) -> Any:
        version = self._version(round_id)
        teacher = self.teacher()
        teacher.use(version)
        return teacher, teacher.view_pool()

    def _version(self, round_id: int) -> str:
        return llm_version(self.record.index, before_round=round_id)

    def faults(self, round_id: int) -> Iterator[str]:
        """Where the coordinator's messages of a round are not what follows from its input."""
        record, where = self.record, f"round {round_id}"
        teacher, view = self._view(round_id)
        _, demand = record.opened(round_id, DEMAND)
        written = teacher.write(demand)
        paths = record.payload(record.find(Kind.PATHS, round_id))
        if rationales_payload(self.study, written.texts, view.cells) != paths:
            yield f"{where}: the paths on the board are not those of the opened demand"
        fresh = self.teacher()
        version = self._version(round_id)
        _, known = record.opened(round_id, CONFIDENCE_EXCESS)
        asked = samples_to_ask(fresh, known, version=version)
        inquiry = record.find(Kind.INQUIRY, round_id)
        if inquiry_bytes(asked) != record.payload(inquiry):
            yield f"{where}: the inquiry is not that of the opened advantages"
            return
        decision = improve_llm(
            fresh,
            self._site_rationales(round_id, asked),
            parse_rationales(paths, self.study),
            inquiry=inquiry.message_hash,
            version=version,
            seed=self.study.plan.seed + round_id,
        )
        expected = decision.model_dump()
        found = dict(record.find(Kind.LLM_UPDATE, round_id).header.body)
        if found != expected:
            differing = sorted(key for key in expected if found.get(key) != expected[key])
            yield f"{where}: the update of the LLM differs in {', '.join(differing)}"

    def _site_rationales(
        self, round_id: int, asked: list[int]
    ) -> dict[str, tuple[SiteRationale, ...]]:
        return {
            one.header.sender: parse_site_rationales(self.record.payload(one), asked=asked)
            for one in self.record.index
            if (one.kind, one.header.round_id) == (Kind.SITE_PATHS, round_id)
        }


@dataclass
class SiteAgain:
    """One site, computed again from its releases; its state folder is not written."""

    record: Record
    coordinator: CoordinatorAgain
    site: str
    state: SiteState = field(default_factory=SiteState)

    @cached_property
    def context(self) -> SiteContext:
        """What the site computes with; nothing here asks for a release."""
        settings = read_site_settings(self.record.federation.layout.site(self.site).settings)[0]
        study, plan = self.coordinator.study, self.record.plan
        return SiteContext.open(
            plan,
            load_language_model(
                str(settings.slm_folder),
                cache_dir=settings.cache_dir,
                calling=settings.model.calling,
            ),
            pool=study.pool,
            clusters=study.clusters,
            embedder=embedder(plan.embedder),
            records=PrivateRecords(()),
            book=cast(LedgerBook, None),
            execution=settings.execution,
        )

    def noised(self, round_id: int) -> NoisedStatistics:
        """The statistics that the site released."""
        raw = self.record.released(self.site, round_id, STATISTICS)
        public = statistics_parameters(self.record.plan)
        vector = parse_vector(raw, what=STATISTICS, length=public.length, bound=public.site_bound)
        return NoisedStatistics(vector=vector, parameters=public)

    def faults(self, round_id: int, features: FloatArray) -> Iterator[str]:
        """Where the site's choices of a round are not what follows from its releases.

        Rounds must come in order: what was learned in one is what the next one starts from.
        """
        record, plan = self.record, self.record.plan
        where = f"round {round_id}, {self.site}"
        noised, kept = self.noised(round_id), record.kept(self.site, "site-state.json")
        scores = features @ site_choice(self.context, self.state, noised).utilities
        state = pick(self.context, self.state, round_id, noised, scores)
        picked = tuple(kept["picks"][str(round_id)])
        if state.picks[round_id] != picked:
            yield f"{where}: it picked other samples than its releases lead to"
            state = state.with_picks(round_id, picked)
        done = self._trained(state, round_id, noised)
        excess = [int(value) for value in confidence_excess(self.context, done.state)]
        self.state = done.state.with_excess(round_id, excess)
        if round_id == plan.rounds - 1:
            for name in ("history", "rationales"):
                if self._document()[name] != kept[name]:
                    yield f"{where}: its {name} is not what its releases lead to"
        told = {"round": round_id, "cells": list(done.cells)}
        if done.fallback is not None:
            told["fallback"] = asdict(done.fallback)
        if told != record.kept(self.site, f"allocation-round-{round_id}.json"):
            yield f"{where}: its explanation of the allocation is not that of its releases"
        if excess != kept["excess"][str(round_id)]:
            yield f"{where}: its advantages are not those of the released model"

    def _trained(self, state: SiteState, round_id: int, noised: NoisedStatistics) -> TrainedRound:
        """The round's training, with the released adapters in place of its steps."""
        pool, plan = self.context.pool, self.record.plan
        paths = self.record.find(Kind.PATHS, round_id)
        received = parse_received_rationales(
            self.record.payload(paths), pool=pool, cells=cell_grid(plan).cells
        )
        demanded = parse_body(paths, PathsBody).demanded
        considered = consider(self.context, state, round_id, noised, received, demanded=demanded)
        folder = self.record.federation.layout.site(self.site).study
        weights = (folder / f"adapters-round-{round_id}.safetensors").read_bytes()
        load_adapters(self.context.lm, AdapterWeights(data=weights))
        return close(self.context, considered, round_id)

    def _document(self) -> Any:
        """The state as the site's memory would write it."""
        memory = SiteMemory(folder=self.coordinator.scratch / self.site)
        memory.keep(self.state)
        return json.loads((memory.folder / "site-state.json").read_bytes())


def sums_are_exact(record: Record) -> Iterator[str]:
    """Where an opened sum is not the sum of what the sites' ledgers and memories hold."""
    for round_id in range(record.plan.rounds):
        for purpose in (STATISTICS, DEMAND, CONFIDENCE_EXCESS):
            sites, total = record.opened(round_id, purpose)
            added = np.zeros(len(total), dtype=np.int64)
            for site in sites:
                added += _vector(record, site, round_id, purpose)
            if added.tolist() != total:
                yield f"round {round_id}, {purpose}: the opened sum is not that of the sites"


def _vector(record: Record, site: str, round_id: int, purpose: str) -> Any:
    if purpose == STATISTICS:
        vector = json.loads(record.released(site, round_id, STATISTICS))["vector"]
    elif purpose == DEMAND:
        vector = np.zeros(record.plan.pool_size, dtype=np.int64)
        vector[record.kept(site, "site-state.json")["picks"][str(round_id)]] = 1
    else:
        vector = record.kept(site, "site-state.json")["excess"][str(round_id)]
    return np.array(vector, dtype=np.int64)


def evaluated_again(record: Record, scratch: Path) -> Iterator[str]:
    """Where any party's choices are not those of the undisturbed evaluation."""
    import torch

    torch.set_num_threads(1)
    folders = {name: scratch / name for name in ("coordinator", *record.federation.sites)}
    for folder in folders.values():
        folder.mkdir(parents=True)
    coordinator = CoordinatorAgain(record, folders["coordinator"])
    sites = [
        SiteAgain(record=record, coordinator=coordinator, site=site)
        for site in record.federation.sites
    ]
    for round_id in range(record.plan.rounds):
        features = coordinator.features(round_id)
        for site in sites:
            yield from site.faults(round_id, features)
        yield from coordinator.faults(round_id)
