"""The auditor's aggregate keys: every check that comes before one is touched, and each sum once.

Blind scores are computed again before a demand is opened. Adversary: a coordinator that answers
one site otherwise than the rest, to see its picks in the sum. Property: what is opened is a sum of
picks that all follow from one matrix, to which the coordinator was bound before it could know any
of them. The auditor reads neither utilities nor scores: queries and scores are under the sites'
own keys. It does read the matrix.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_clients.auditor.ledgers import LedgerCopies, admitted_claim
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import (
    ScoredQuery,
    check_scored_round,
    scoring_parameters_of,
)
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.payments import check_payment
from lada_protocol.rounds.secure_aggregation import (
    AggregateRequest,
    check_aggregate_request,
    check_opened_range,
    purpose_parameters,
)
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.canonical import canonical_json
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.matrix import parse_matrix
from lada_secure.encryption.sealing import SealedSum
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.errors import DiskError, LocalProtocolError, PeerError
from lada_secure.method.plan import DEMAND
from lada_secure.storage.whole_files import read_file, sync, write_atomically

# Refusals that only a decryption can cause.
REFUSED_BY_KEY: Final = frozenset({"out_of_range", "over_quota", "native_failure"})


def fault_body(error: PeerError) -> dict[str, str]:
    """What a refusal says of its reason."""
    return {"code": error.reason, "message": str(error)[:1000]}


def claim_opening(folder: Path, study_id: str, attempt: Attempt, sum_message: str) -> None:
    """Note that this sum, and no other, is opened for its study, round and purpose, for ever.

    Opening two different sums for one (round, purpose) would show their difference, which may be
    a single site. The note is on disk before the key touches anything. It appears whole and under
    its name at once (a hard link fails where the name is taken), so neither two auditor processes
    nor a crash leave a doubtful one. Claiming the same sum again is fine: it opens to the same
    numbers.

    Raises: PeerError(reason="already_opened"); TransportError: the note cannot be written.
    """
    path, note = folder / f"{study_id}-{attempt.round_id}-{attempt.purpose}", sum_message.encode()
    # Threads of one process claim too; the process id at the end is what `sweep_parts` reads.
    draft = folder / f".{path.name}.{secrets.token_hex(8)}.{os.getpid()}"
    write_atomically(draft, note, mode=0o600)
    try:
        os.link(draft, path)
        sync(folder)
    except FileExistsError:
        if read_file(path, refusal=DiskError) != note:
            raise attempt.fault(
                "another sum was opened before; two openings would reveal their difference",
                reason="already_opened",
            ) from None
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


@dataclass(slots=True, kw_only=True)
class SumOpening:
    """Step 5 in one study; aggregate keys never leave `state_dir`.

    It keeps the newest matrix: all sites of a round share it, encoded, and so do retries.
    """

    participant: Participant
    state_dir: Path
    ledgers: LedgerCopies
    _matrix: PoolMatrix | None = None
    _matrix_of: str = ""

    @property
    def notes(self) -> Path:
        """The folder of `claim_opening`."""
        return self.state_dir / "opened"

    def key(self, purpose: str) -> AggregateKey:
        """The BFV key of a purpose: one per study, made at its first use, kept on disk."""
        plan = self.participant.plan
        parameters = purpose_parameters(plan, purpose)
        name = f"{plan.study_id}-{plan.hash[:16]}-{purpose}.key"
        kept = SecretFolder(folder=self.state_dir / "keys")
        raw = kept.once(name, lambda: AggregateKey.generate(parameters).to_bytes())
        key = AggregateKey.from_bytes(raw)
        if key.parameters != parameters:
            raise LocalProtocolError(f"{kept.folder / name} holds a key for other parameters")
        return key

    def post_key(self, purpose: str) -> None:
        """Post the public half of a purpose's key."""
        me = self.participant
        digest = purpose_parameters(me.plan, purpose).digest
        me.post(
            Kind.OPENING_KEY,
            {"parameters_digest": digest, "certificate": me.certificate},
            lambda: self.key(purpose).public_bytes,
            purpose=purpose,
        )

    def answer(self, attempt: Attempt) -> None:
        """Open the sum of an attempt and post it, or post why not."""
        me = self.participant
        try:
            request = self._verified(attempt)
            sealed = self._recomputed_sum(request)
            if attempt.purpose == DEMAND:
                self._check_scores(attempt, request.cohort)
            sum_message = request.sum_message.message_hash
            claim_opening(self.notes, me.plan.study_id, attempt, sum_message)
            values = [int(value) for value in self.key(attempt.purpose).open_sum(sealed)]
            check_opened_range(values, me.plan, attempt.purpose, len(request.cohort))
        except PeerError as error:
            me.post(Kind.OPENING_REFUSED, fault_body(error), attempt=attempt)
            return
        contributions = {site: sent.message_hash for site, sent in request.contributions.items()}
        body = {
            "contributions": contributions,
            "sum_message": sum_message,
            "largest": max(abs(value) for value in values),
        }
        me.post(Kind.OPENED, body, lambda: canonical_json(values), attempt=attempt)

    def _verified(self, attempt: Attempt) -> AggregateRequest:
        """Every check of signed messages and ledgers."""
        me = self.participant
        self._check_key_is_fresh(attempt)
        request = check_aggregate_request(me.index, attempt)
        for site, paid_by in request.paid_by.items():
            entries = self.ledgers.entries(site, admitted_claim(me.index, site).population)
            check_payment(entries, paid_by, plan=me.plan, attempt=attempt, site=site)
        return request

    def _check_key_is_fresh(self, attempt: Attempt) -> None:
        """A key that has once said "out of range" says nothing more.

        Each such answer to a crafted ciphertext is about one bit on the secret key, so a
        coordinator that goes on after a refusal must not get a second one.

        Raises: PeerError(reason="key_retired").
        """
        me = self.participant
        refusal = Kind.OPENING_REFUSED, me.party, attempt.purpose
        for message in me.index:
            head = message.header
            if (message.kind, head.sender, head.purpose) == refusal and (
                parse_body(message, FaultBody).code in REFUSED_BY_KEY
            ):
                raise PeerError(
                    f"the opening key of {attempt.purpose} refused a sum in round {head.round_id} "
                    "and is not used again; start a new study",
                    reason="key_retired",
                    peer=me.roster.coordinator.id,
                    round_id=attempt.round_id,
                )

    def _recomputed_sum(self, request: AggregateRequest) -> bytes:
        """The sum as the auditor adds it up itself; the coordinator's must be the same bytes."""
        me = self.participant
        running = SealedSum(purpose_parameters(me.plan, request.attempt.purpose))
        # One at a time: memory does not grow with the cohort.
        for site in request.cohort:
            running.add(me.payload(request.contributions[site]))
        total = running.to_bytes()
        if total != me.payload(request.sum_message):
            raise request.attempt.fault(
                "the coordinator's sum is not the sum of the signed contributions",
                reason="wrong_sum",
                peer=me.roster.coordinator.id,
            )
        return total

    def _check_scores(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        """Check what the coordinator answered to every site of a demand.

        One site at a time: memory does not grow with the cohort.

        Raises: PeerError: as `check_scored_round`; wrong_matrix: what was committed to is no
            matrix; wrong_scores: not the scores of this query under this matrix.
        """
        me = self.participant
        committed, by_site = check_scored_round(me.index, cohort, round_id=attempt.round_id)
        matrix = self._parsed_matrix(committed)
        for site, one in by_site.items():
            self._check_scores_of(site, one, matrix)

    def _parsed_matrix(self, message: Envelope) -> PoolMatrix:
        if self._matrix is None or self._matrix_of != message.header.payload_sha256:
            plan, head = self.participant.plan, message.header
            raw = self.participant.payload(message)
            try:
                parsed = parse_matrix(raw, scoring_parameters_of(plan), plan.pool_size)
            except PeerError as error:
                raise message.fault(
                    f"round {head.round_id}: what {head.sender} committed to is no matrix: {error}",
                    reason="wrong_matrix",
                ) from error
            self._matrix = PoolMatrix(parsed, worker=shared_worker())
            self._matrix_of = head.payload_sha256
        return self._matrix

    def _check_scores_of(self, site: str, one: ScoredQuery, matrix: PoolMatrix) -> None:
        me, head = self.participant, one.scores.header
        fault = "are not those of its query under the matrix of the round"
        try:
            same = matrix.score(me.payload(one.query)) == me.payload(one.scores)
        except PeerError as error:
            # Of all codes this one says what it means for the sum; none of it touched a key.
            same, fault = False, f"cannot be computed from its query ({error})"
        if not same:
            raise one.scores.fault(
                f"round {head.round_id}: the scores of {head.sender} for {site} {fault}",
                reason="wrong_scores",
            )
