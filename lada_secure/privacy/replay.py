"""The rules of a ledger as a pure machine: stores propose and append, the verifier replays.

Both go through `LedgerReplay.append`, so a store cannot write what a verifier would refuse.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lada_secure.canonical import sha256_hex
from lada_secure.errors import LedgerError, ParameterError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting import PldAccountant
from lada_secure.privacy.entries import (
    ADJACENCY,
    MAX_STATEMENT,
    CommitEntry,
    Decision,
    DecisionEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    ReserveEntry,
    check_signature,
    load_public_key,
)
from lada_secure.privacy.fields import check_hash, check_name, format_time, parse_time
from lada_secure.privacy.ledger import (
    BudgetCaps,
    LedgerHead,
    ReleaseSpec,
    Reservation,
    check_mechanism,
)

# Time services step a clock back by fractions of a second; more than this is somebody's doing.
CLOCK_TOLERANCE = timedelta(seconds=2)
MAX_OUTPUT_BYTES = 2**28


class LedgerReplay:
    """Everything that the entries so far imply. Changes only in `append`, all or nothing."""

    def __init__(self, identity: LedgerIdentity) -> None:
        self._identity = identity
        self._key: Ed25519PublicKey = load_public_key(identity.public_key)
        self._length = 0
        self._head_hash = identity.genesis_hash
        self._last_time: str | None = None
        self._decisions: dict[str, DecisionEntry] = {}
        self._reserved: dict[str, ReserveEntry] = {}
        self._last_reserve: ReserveEntry | None = None
        self._attempts: dict[ReleaseKey, int] = {}
        self._commits: dict[ReleaseKey, CommitEntry] = {}
        self._total = PldAccountant()
        self._by_study: dict[str, PldAccountant] = {}

    @property
    def identity(self) -> LedgerIdentity:
        """Whose ledger it is."""
        return self._identity

    @property
    def length(self) -> int:
        """How many entries were appended."""
        return self._length

    def head(self) -> LedgerHead:
        """Where the ledger ends."""
        return LedgerHead(
            site=self._identity.site,
            population=self._identity.population,
            index=self._length - 1,
            entry_hash=self._head_hash,
        )

    def committed(self, key: ReleaseKey) -> CommitEntry | None:
        """The commit entry of a key, or None."""
        return self._commits.get(key)

    def reserved(self, entry_hash: str) -> ReserveEntry | None:
        """The reservation with this hash, or None."""
        return self._reserved.get(entry_hash)

    def last_reserve(self) -> ReserveEntry | None:
        """The newest reservation, or None."""
        return self._last_reserve

    def decision(self, study_id: str) -> DecisionEntry | None:
        """The latest decision on a study, or None."""
        return self._decisions.get(study_id)

    def studies(self) -> tuple[str, ...]:
        """Studies that have spent anything, sorted."""
        return tuple(sorted(self._by_study))

    def accountant(self, study_id: str | None = None) -> PldAccountant:
        """The composed releases of one study, or of all."""
        if study_id is None:
            return self._total
        return self._by_study.get(study_id) or PldAccountant()

    # --- proposing: what a store writes next -------------------------------------------------

    def _now(self, now: datetime) -> str:
        text = format_time(now)
        if self._last_time is None or text >= self._last_time:
            return text
        behind = parse_time(self._last_time) - parse_time(text)
        if behind > CLOCK_TOLERANCE:
            raise LedgerError(
                f"clock: it shows {text}, but the ledger's last entry is of {self._last_time}; "
                f"the clock was set back by {behind.total_seconds():.0f} s. Nothing was written; "
                "correct the clock"
            )
        return self._last_time

    def _require_approval(self, study_id: str, plan_hash: str, now: str, *, where: str) -> None:
        decision = self._decisions.get(study_id)
        if decision is None:
            raise LedgerError(f"{where}: the site has not approved study {study_id}")
        if decision.decision != "approve":
            raise LedgerError(
                f"{where}: the site's latest decision on study {study_id} is "
                f"{decision.decision!r} (entry {decision.index})"
            )
        if decision.plan_hash != plan_hash:
            raise LedgerError(
                f"{where}: the approved plan of study {study_id} is "
                f"{decision.plan_hash[:12]}..., not {plan_hash[:12]}..."
            )
        if now > decision.expires:
            raise LedgerError(
                f"{where}: the plan of study {study_id} expired on {decision.expires}; it is "
                f"{now}. Ask the coordinator for a new plan"
            )

    def propose_reserve(
        self, spec: ReleaseSpec, *, caps: BudgetCaps, data_fingerprint: str, now: datetime
    ) -> ReserveEntry | CommitEntry:
        """The unsigned reserve entry for a release, or the commit that its key already has.

        Raises: PrivacyBudgetExceeded: over a cap. LedgerError: not approved, expired, clock set
            back, or the key was committed with another mechanism.
        """
        check_hash("data_fingerprint", data_fingerprint)
        time = self._now(now)
        where = f"reserve for {spec.key}"
        self._require_approval(spec.study_id, spec.plan_hash, time, where=where)
        earlier = self._commits.get(spec.key)
        if earlier is not None:
            self._require_same_release(spec, earlier, where=where)
            return earlier
        delta = caps.target_delta
        study = self.accountant(spec.study_id)
        study_epsilon = study.epsilon_with(spec.event, delta)
        study_rdp = study.epsilon_rdp_with(spec.event, delta)
        if set(self._by_study) <= {spec.study_id}:
            total_epsilon, total_rdp = study_epsilon, study_rdp
        else:
            total_epsilon = self._total.epsilon_with(spec.event, delta)
            total_rdp = self._total.epsilon_rdp_with(spec.event, delta)
        study_cap = caps.for_study(spec.study_id)
        for scope, epsilon, cap in (
            (f"study {spec.study_id}", study_epsilon, study_cap),
            ("all studies together", total_epsilon, caps.total_epsilon),
        ):
            # Not `epsilon > cap`: a NaN must refuse too.
            if not epsilon <= cap:
                raise PrivacyBudgetExceeded(
                    f"{where}: epsilon of {scope} would be {epsilon:.6g} at delta {delta:g}, "
                    f"the site's cap is {cap:.6g}; nothing was spent and no record was read. "
                    "Plan fewer releases or more noise, or let the site raise its cap"
                )
        return ReserveEntry(
            index=self._length,
            previous_hash=self._head_hash,
            site=self._identity.site,
            population=self._identity.population,
            study_id=spec.study_id,
            plan_hash=spec.plan_hash,
            time=time,
            signature="",
            round_id=spec.round_id,
            purpose=spec.purpose,
            chunk=spec.chunk,
            attempt=self._attempts.get(spec.key, 0),
            mechanism=spec.mechanism,
            parameters=dict(spec.parameters),
            event=spec.event,
            unit=spec.unit,
            adjacency=spec.adjacency,
            data_fingerprint=data_fingerprint,
            target_delta=delta,
            epsilon_after=total_epsilon,
            epsilon_rdp_after=total_rdp,
            study_epsilon_after=study_epsilon,
            study_epsilon_rdp_after=study_rdp,
            total_cap=caps.total_epsilon,
            study_cap=study_cap,
        )

    def _require_same_release(self, spec: ReleaseSpec, commit: CommitEntry, *, where: str) -> None:
        paid = self._reserved[commit.reserve_hash]
        same = (
            paid.plan_hash == spec.plan_hash
            and paid.mechanism == spec.mechanism
            and dict(paid.parameters) == dict(spec.parameters)
            and paid.event == spec.event
            and paid.unit == spec.unit
        )
        if not same:
            raise LedgerError(
                f"{where}: entry {commit.index} committed an output for it with another plan, "
                "mechanism or event; use another round, purpose or chunk"
            )

    def propose_commit(
        self, reservation: Reservation, output: bytes, *, now: datetime
    ) -> CommitEntry:
        """The unsigned commit entry for an output, or the one that says the same already.

        Raises: LedgerError: unknown reservation, another output was committed, no approval,
            clock set back. ParameterError: output empty or above 256 MiB.
        """
        if not 0 < len(output) <= MAX_OUTPUT_BYTES:
            raise ParameterError(
                f"output: expected 1 to {MAX_OUTPUT_BYTES} bytes, got {len(output)}"
            )
        paid = self._reserved.get(reservation.entry_hash)
        if paid is None:
            raise LedgerError("commit: this ledger holds no such reservation")
        digest = sha256_hex(output)
        earlier = self._commits.get(paid.key)
        if earlier is not None:
            if earlier.reserve_hash == reservation.entry_hash and earlier.output_sha256 == digest:
                return earlier
            raise LedgerError(
                f"commit for {paid.key}: entry {earlier.index} committed another output already; "
                "send that one (`stored_output`) and drop this one"
            )
        time = self._now(now)
        self._require_approval(paid.study_id, paid.plan_hash, time, where=f"commit for {paid.key}")
        return CommitEntry(
            index=self._length,
            previous_hash=self._head_hash,
            site=self._identity.site,
            population=self._identity.population,
            study_id=paid.study_id,
            plan_hash=paid.plan_hash,
            time=time,
            signature="",
            round_id=paid.round_id,
            purpose=paid.purpose,
            chunk=paid.chunk,
            reserve_hash=reservation.entry_hash,
            output_sha256=digest,
            output_bytes=len(output),
        )

    def propose_decision(
        self,
        decision: Decision,
        *,
        study_id: str,
        plan_hash: str,
        expires: datetime,
        decided_by: str,
        statement: str,
        now: datetime,
    ) -> DecisionEntry:
        """The unsigned entry for a decision.

        Raises: LedgerError: withdrawing what is not approved, approving an expired plan, clock
            set back. ParameterError: a name or the statement has a wrong form.
        """
        check_name("study_id", study_id)
        check_hash("plan_hash", plan_hash)
        check_name("decided_by", decided_by)
        if len(statement) > MAX_STATEMENT:
            raise ParameterError(
                f"statement: expected at most {MAX_STATEMENT} characters, got {len(statement)}"
            )
        entry = DecisionEntry(
            index=self._length,
            previous_hash=self._head_hash,
            site=self._identity.site,
            population=self._identity.population,
            study_id=study_id,
            plan_hash=plan_hash,
            time=self._now(now),
            signature="",
            decision=decision,
            expires=format_time(expires),
            decided_by=decided_by,
            statement=statement,
        )
        self._check_decision(entry, where=f"{decision} study {study_id}")
        return entry

    # --- appending: what a store or a verifier has read --------------------------------------

    def append(self, entry: LedgerEntry) -> None:
        """Check an entry against everything before it, then count it.

        Epsilon and caps are not checked here: stores do that when they propose, and
        `verification` recomputes them.

        Raises: LedgerError: names the entry; the state is unchanged.
        """
        where = f"entry {entry.index}"
        self._check_link(entry)
        check_signature(entry, self._key)
        match entry:
            case ReserveEntry():
                self._check_reserve(entry, where=where)
            case CommitEntry():
                self._check_commit(entry, where=where)
            case DecisionEntry():
                self._check_decision(entry, where=where)
            case _:
                raise LedgerError(f"{where}: unknown kind {entry.kind!r}")
        self._count(entry)

    def _check_link(self, entry: LedgerEntry) -> None:
        if entry.index != self._length:
            raise LedgerError(
                f"entry {self._length}: its index says {entry.index}; an entry is missing, "
                "repeated or out of order"
            )
        if (entry.site, entry.population) != (self._identity.site, self._identity.population):
            raise LedgerError(
                f"entry {entry.index}: it belongs to site {entry.site!r}, population "
                f"{entry.population!r}, not to {self._identity.site!r}, "
                f"{self._identity.population!r}"
            )
        if entry.previous_hash != self._head_hash:
            raise LedgerError(
                f"entry {entry.index}: previous_hash does not match the entry before it; this "
                "entry or the one before was changed, or the history was forked here"
            )
        if self._last_time is not None and entry.time < self._last_time:
            raise LedgerError(
                f"entry {entry.index}: time {entry.time} is before the entry before it "
                f"({self._last_time})"
            )

    def _check_reserve(self, entry: ReserveEntry, *, where: str) -> None:
        self._require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        if entry.adjacency != ADJACENCY:
            raise LedgerError(f"{where}: adjacency: only {ADJACENCY} is known")
        try:
            check_mechanism(entry.mechanism, entry.parameters, entry.event)
        except ParameterError as error:
            raise LedgerError(f"{where}: {error}") from error
        if entry.key in self._commits:
            raise LedgerError(f"{where}: {entry.key} was committed before and is reserved again")
        expected = self._attempts.get(entry.key, 0)
        if entry.attempt != expected:
            raise LedgerError(f"{where}: attempt: expected {expected}, got {entry.attempt}")

    def _check_commit(self, entry: CommitEntry, *, where: str) -> None:
        self._require_approval(entry.study_id, entry.plan_hash, entry.time, where=where)
        paid = self._reserved.get(entry.reserve_hash)
        if paid is None:
            raise LedgerError(f"{where}: it commits a reservation that this ledger does not hold")
        if paid.key != entry.key or paid.plan_hash != entry.plan_hash:
            raise LedgerError(f"{where}: it commits entry {paid.index}, which is for {paid.key}")
        if entry.key in self._commits:
            raise LedgerError(f"{where}: {entry.key} was committed before")
        if not 0 < entry.output_bytes <= MAX_OUTPUT_BYTES:
            raise LedgerError(f"{where}: output_bytes: expected 1 to {MAX_OUTPUT_BYTES}")

    def _check_decision(self, entry: DecisionEntry, *, where: str) -> None:
        if entry.decision == "approve" and entry.expires <= entry.time:
            raise LedgerError(f"{where}: the plan expired on {entry.expires}; it is {entry.time}")
        latest = self._decisions.get(entry.study_id)
        approved = latest is not None and latest.decision == "approve"
        if entry.decision == "withdraw" and not approved:
            raise LedgerError(
                f"{where}: the study is not approved, so there is nothing to withdraw"
            )

    def _count(self, entry: LedgerEntry) -> None:
        entry_hash = entry.entry_hash
        if isinstance(entry, ReserveEntry):
            self._reserved[entry_hash] = entry
            self._last_reserve = entry
            self._attempts[entry.key] = entry.attempt + 1
            self._total.compose(entry.event)
            self._by_study.setdefault(entry.study_id, PldAccountant()).compose(entry.event)
        elif isinstance(entry, CommitEntry):
            self._commits[entry.key] = entry
        elif isinstance(entry, DecisionEntry):
            self._decisions[entry.study_id] = entry
        self._head_hash = entry_hash
        self._last_time = entry.time
        self._length += 1
