"""The undisturbed evaluation: what coordinator and sites must have chosen, computed once more.

Noise is fresh in every run, so two runs cannot be compared message by message. What can be: given
what a disturbed run released (noised statistics, adapters, the LLM's accepted updates), everything
else follows without chance. Here it is computed in one process, in order, with nothing in the way,
and compared with what the parties did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lada_clients.site.learner import SiteLearner
from lada_clients.site.ledger.store import open_ledger_reader
from lada_clients.site.memory import KnownRationale, SiteMemory
from lada_clients.site.runner import read_site_settings
from lada_protocol.identity.roster import Roster, parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, StudyPlan, parse_plan
from lada_protocol.plan_mechanisms import statistics_parameters
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.llm_transfer import (
    NO_ADAPTERS,
    SiteRationale,
    inquiry_bytes,
    llm_version,
    parse_site_rationales,
    split_pool,
    transfer_of,
)
from lada_protocol.settings import parse_settings
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.messages import OpenedBody, parse_body
from lada_secure.allocation.confidence_excess import excess_over_threshold
from lada_secure.allocation.explanation import explain_cells
from lada_secure.allocation.gap import cell_rewards, probability
from lada_secure.allocation.reward_model import observations
from lada_secure.allocation.statistics import NoisedStatistics, parse_noised_statistics
from lada_secure.arrays import FloatArray
from lada_secure.data.records import pool_bytes, read_pool, read_records
from lada_secure.models.adapters import AdapterWeights, load_adapters
from lada_secure.privacy.ledger.book import ReleaseKey
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import bound_units
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.llm_files import LlmFiles
from lada_server.study.llm_transfer import CoordinatorTransfer, update_body
from lada_server.study.proposal import Study, prepare_study
from lada_server.study.teacher import Teacher, written_rationales

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
        index = MessageIndex(self.plan.study_id, self.plan.hash)
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
        message = self.index.opened(round_id, purpose, auditor=self.roster.auditor.id)
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
            pool_bytes=pool_bytes(pool),
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
            settings.llm,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
            files=LlmFiles(folder=settings.state_dir / "llm"),
        )

    def features(self, round_id: int) -> FloatArray:
        """The private matrix of blind scoring of a round."""
        return self._view(round_id)[1].features

    def _view(self, round_id: int) -> Any:
        version = self._version(round_id)
        teacher = self.teacher()
        if version != NO_ADAPTERS:
            teacher.use(self.study, version)
        return teacher, teacher.view_pool(self.study)

    def _version(self, round_id: int) -> str:
        me = self.record.roster.coordinator.id
        return llm_version(self.record.index, coordinator=me, before_round=round_id)

    def faults(self, round_id: int) -> Iterator[str]:
        """Where the coordinator's messages of a round are not what follows from its input."""
        record, where = self.record, f"round {round_id}"
        teacher, view = self._view(round_id)
        _, demand = record.opened(round_id, DEMAND)
        written = teacher.write_rationales(self.study, view, demand, progress=lambda *_: None)
        paths = record.payload(record.find(Kind.PATHS, round_id))
        if written.payload != paths:
            yield f"{where}: the paths on the board are not those of the opened demand"
        uplink = CoordinatorTransfer(study=self.study, teacher=self.teacher())
        version = self._version(round_id)
        _, known = record.opened(round_id, CONFIDENCE_EXCESS)
        asked = uplink.samples_to_ask(known, version=version)
        inquiry = record.find(Kind.INQUIRY, round_id)
        if inquiry_bytes(asked) != record.payload(inquiry):
            yield f"{where}: the inquiry is not that of the opened advantages"
            return
        decision = uplink.improve(
            self._site_rationales(round_id, asked),
            written_rationales(paths, self.study),
            version=version,
            seed=self.study.plan.seed + round_id,
            progress=lambda *_: None,
        )
        expected = update_body(
            decision,
            inquiry=inquiry.message_hash,
            holdout=transfer_of(record.plan).holdout,
            before=version,
        )
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


@dataclass(frozen=True)
class SiteAgain:
    """One site, computed again from its releases; its state folder is not written."""

    record: Record
    coordinator: CoordinatorAgain
    site: str
    scratch: Path

    @cached_property
    def learner(self) -> SiteLearner:
        """The site's model as it was before the first round, with an empty memory."""
        settings, _ = read_site_settings(self.record.federation.layout.site(self.site).settings)
        study, plan = self.coordinator.study, self.record.plan
        return SiteLearner.load(
            plan=plan,
            settings=settings,
            pool=study.pool,
            clusters=study.clusters,
            records=PrivateRecords(
                bound_units(
                    read_records(settings.records),
                    max_records_per_unit=plan.privacy.max_records_per_unit,
                )
            ),
            held_out=(),
            memory=SiteMemory(folder=self.scratch),
        )

    def noised(self, round_id: int) -> NoisedStatistics:
        """The statistics that the site released."""
        raw = self.record.released(self.site, round_id, STATISTICS)
        return parse_noised_statistics(raw, statistics_parameters(self.record.plan))

    def faults(self, round_id: int, features: FloatArray) -> Iterator[str]:
        """Where the site's choices of a round are not what follows from its releases.

        Rounds must come in order: what was learned in one is what the next one starts from.
        """
        learner, record = self.learner, self.record
        where = f"round {round_id}, {self.site}"
        noised = self.noised(round_id)
        scores = features @ learner.utilities(round_id, noised)
        picks = learner.picks(round_id, noised, scores)
        if picks != record.kept(self.site, f"picks-round-{round_id}.json"):
            yield f"{where}: it picked other samples than its releases lead to"
            learner.memory.keep_picks(
                round_id, record.kept(self.site, f"picks-round-{round_id}.json") or []
            )
        self._learn(round_id, noised)
        for name in ("filter-history.json", "known-paths.json"):
            if round_id == record.plan.rounds - 1 and not self._same(name):
                yield f"{where}: {name} is not what its releases lead to"
        if not self._same(f"allocation-round-{round_id}.json"):
            yield f"{where}: its explanation of the allocation is not that of its releases"
        if self._advantages() != record.kept(self.site, f"advantages-round-{round_id}.json"):
            yield f"{where}: its advantages are not those of the released model"

    def _same(self, name: str) -> bool:
        """Whether the site's file says what the new one says."""
        again = self.learner.memory.folder / name
        theirs = self.record.federation.layout.site(self.site).study / name
        return theirs.exists() and again.read_bytes() == theirs.read_bytes()

    def _learn(self, round_id: int, noised: NoisedStatistics) -> None:
        """What `SiteLearner.train` notes, with the released adapters in place of training."""
        learner, memory = self.learner, self.learner.memory
        received = learner.parse_paths(self.record.payload(self.record.find(Kind.PATHS, round_id)))
        view, utility = learner.allocator.view(round_id, noised)
        wanted = set(memory.picks(round_id) or ())
        mine = [one for one in received if one.sample in wanted]
        examples = [learner._path_example(one) for one in mine]
        before = learner._losses(examples)
        kept = learner.allocator.screen(probability(before))
        weights = (
            self.record.federation.layout.site(self.site).study
            / f"adapters-round-{round_id}.safetensors"
        ).read_bytes()
        load_adapters(learner.model, AdapterWeights(data=weights))
        after = learner._losses(examples)
        # A round counts as trained in by its adapters; what was picked in it is not picked again.
        memory.keep_adapters(round_id, weights)
        cells = np.array([one.cell for one in mine], dtype=np.int64)
        rewards = cell_rewards(before[kept], after[kept], cells[kept], cells=learner.grid.cells)
        memory.keep_history(
            memory.history().with_round(observations(view.beliefs, rewards, round_id=round_id))
        )
        memory.keep_known_paths(
            [
                KnownRationale(sample=one.sample, cell=one.cell, p=float(p))
                for one, p in zip(mine, probability(after), strict=True)
            ]
        )
        memory.keep_allocation(
            round_id,
            [
                one.to_json()
                for one in explain_cells(view, utility, picked_cells=cells, rewards=rewards)
            ],
        )

    def _advantages(self) -> list[int]:
        plan = self.record.plan
        uplink, candidates = transfer_of(plan), split_pool(plan).candidates
        found = excess_over_threshold(
            self.learner.confidence(candidates),
            candidates,
            pool_size=plan.pool_size,
            threshold=uplink.bar,
            clip=uplink.clip,
            scale=uplink.integer_scale,
        )
        return [int(one) for one in found]


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
        vector[record.kept(site, f"picks-round-{round_id}.json")] = 1
    else:
        vector = record.kept(site, f"advantages-round-{round_id}.json")
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
        SiteAgain(record, coordinator, site, folders[site]) for site in record.federation.sites
    ]
    for round_id in range(record.plan.rounds):
        features = coordinator.features(round_id)
        for site in sites:
            yield from site.faults(round_id, features)
        yield from coordinator.faults(round_id)
