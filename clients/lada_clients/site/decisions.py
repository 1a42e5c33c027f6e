"""What people at a site do about a waiting plan: read it, approve it, refuse it, withdraw from it.

All of it works while `lada site run` waits or works in the same state folder: what they share is
the ledger's file, which nobody holds for longer than it takes to write an entry.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from lada_clients.net.outcomes import read_outcome
from lada_clients.net.participant import Participant, joined_study
from lada_clients.net.study_folder import study_folder
from lada_clients.site.approval import (
    DecisionRefused,
    approval_to_end,
    check_first_decision,
    policy_name,
)
from lada_clients.site.decision_notes import DecisionNotes, check_reason
from lada_clients.site.gates.files import check_files
from lada_clients.site.gates.policy import plan_faults, plan_statement, planned_budget
from lada_clients.site.gates.slm import SiteSlm, file_hashes, slm_faults
from lada_clients.site.ledger.population import (
    ledger_path,
    new_ledger_sentence,
    open_ledger_between_studies,
    open_own_ledger,
    read_latest_decision,
    read_promises,
    read_spending,
)
from lada_clients.site.settings import SitePolicy, SiteSettings, read_site_settings
from lada_clients.site.shown_plan import ShownPlan
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_plan, parse_time
from lada_protocol.wire.envelope import StudyId
from lada_secure.errors import ParameterError, PeerError, TransportError
from lada_secure.method.plan import LEDGER_TIME_STEP_S
from lada_secure.privacy.accounting.fields import check_person
from lada_secure.privacy.ledger.entries import Decision, DecisionEntry
from lada_secure.privacy.ledger.times import parse_time as parse_ledger_time
from lada_secure.storage.state_folder import (
    FolderInUse,
    check_state_folder,
    shared_state_folder,
)
from lada_secure.storage.whole_files import read_if_there

# Somebody sits in front of it: a study that is not there by then is not there yet.
LOOK_FOR_S: Final = 30.0
_SHORTEST_HASH: Final = 8


def show_plan(settings_path: Path) -> ShownPlan:
    """The waiting plan and all that would follow from approving it; noted as shown.

    Raises: ParameterError: settings, policy or records are wrong. DecisionRefused: no plan waits.
    """
    settings, policy = read_site_settings(settings_path)
    files = check_files(settings, policy)
    with _waiting_study(settings, policy) as participant:
        # Imported here: the libraries of models take seconds, and a refusal should not.
        from lada_clients.site.gates.memory import describe_slm_memory
        from lada_clients.site.public_material import posted_pool

        plan, path, now = participant.plan, ledger_path(settings, policy), _now()
        model = SiteSlm(settings=settings, hashes=file_hashes(settings)).identity()
        pool = posted_pool(participant)
        faults = plan_faults(plan, policy, roster=participant.roster, now=now)
        shown = ShownPlan(
            site=settings.party,
            plan=plan,
            roster=participant.roster,
            policy=policy,
            files=files,
            model=model,
            pool=pool,
            spent=read_spending(path),
            promised=read_promises(path, now=now, besides=plan.hash),
            latest=read_latest_decision(path, plan.study_id),
            faults=faults + slm_faults(model, plan, policy),
            memory=describe_slm_memory(settings, plan, files, pool),
            ledger=() if path.exists() else (f"{new_ledger_sentence(path, policy)}.",),
            now=now,
        )
    DecisionNotes(state_dir=settings.state_dir).note_shown(plan, at=now)
    return shown


def approve(settings_path: Path, study: str, *, by: str, plan_hash: str | None = None) -> str:
    """Record that a person approves the waiting plan of a study.

    Args: by: name and role. plan_hash: how the hash of the plan begins that this person has read
        elsewhere; without it the plan must have been shown here.
    Raises: ParameterError: the waiting plan is another study's, or was not read here.
        DecisionRefused: too late, decided already, another plan than the one that was read, or
            policy or budget forbid it.
    """
    settings, policy = read_site_settings(settings_path)
    by = _person(by)
    check_files(settings, policy)
    with _waiting_study(settings, policy, study) as participant:
        plan, path = participant.plan, ledger_path(settings, policy)
        check_first_decision(read_latest_decision(path, study), plan, now=_now())
        _check_goes_on(settings, plan)
        _check_read(settings, plan, plan_hash)
        faults = plan_faults(plan, policy, roster=participant.roster, now=_now())
        if faults:
            raise DecisionRefused(
                f"the policy forbids it: {'; '.join(faults)}. Nothing was recorded; ask the "
                "coordinator for another plan, or whoever answers for the policy to change that"
            )
        SiteSlm(settings=settings, hashes=file_hashes(settings)).allowed(plan, policy)
        promised = read_promises(path, now=_now(), besides=plan.hash)
        over = planned_budget(plan, policy, spent=read_spending(path), promised=promised).fault()
        if over:
            raise DecisionRefused(f"the budget forbids it: {over}. Nothing was recorded")
        _record(settings, policy, participant, "approve", by=by)
    return (
        f"recorded in the ledger: {by} approved study {study}, plan {plan.hash[:12]}.... A `lada "
        "site run` that waits here goes on by itself; start one where none does"
    )


def refuse(settings_path: Path, study: str, *, by: str, why: str = "") -> str:
    """Record that a person refuses the waiting plan of a study; the others learn that, not why.

    Raises: ParameterError, DecisionRefused: see `approve`.
    """
    settings, policy = read_site_settings(settings_path)
    by, why = _person(by), check_reason(why)
    with _waiting_study(settings, policy, study) as participant:
        plan = participant.plan
        latest = read_latest_decision(ledger_path(settings, policy), study)
        check_first_decision(latest, plan, now=_now())
        _record(settings, policy, participant, "refuse", by=by)
        _keep_reason(settings, study, plan.hash, "refuse", by=by, why=why)
        told = _tell(settings, participant, FailureCode.REFUSED_BY_PERSON)
    return f"recorded in the ledger: {by} refused study {study}; nothing leaves. {told}"


def withdraw(settings_path: Path, study: str, *, by: str, why: str = "") -> str:
    """Record that a site withdraws from a study that it takes part in.

    Needs no network: whatever the others do, nothing more is released from here on.

    Raises: ParameterError: settings, policy or names are wrong. DecisionRefused: this site takes no
        part in the study.
    """
    settings, policy = read_site_settings(settings_path)
    by, why = _person(by), check_reason(why)
    check_state_folder(settings.state_dir, party=settings.party, role="site")
    latest = read_latest_decision(ledger_path(settings, policy), study)
    approved = approval_to_end(latest, study=study)
    plan = _kept_plan(settings, approved)

    def check(now_latest: DecisionEntry | None) -> None:
        approval_to_end(now_latest, study=study)

    with open_ledger_between_studies(
        settings,
        policy,
        signing_key=settings.credentials().signing_key,
        time_step_s=LEDGER_TIME_STEP_S if plan is None else plan.privacy.ledger_time_step_s,
    ) as book:
        book.decide(
            "withdraw",
            study_id=study,
            plan_hash=approved.plan_hash,
            expires=parse_ledger_time(approved.expires),
            decided_by=by,
            statement="" if plan is None else plan_statement(plan),
            check=check,
        )
    _keep_reason(settings, study, approved.plan_hash, "withdraw", by=by, why=why)
    return (
        f"recorded in the ledger: {by} withdrew from study {study}; nothing more leaves under it, "
        f"and what has left cannot be taken back. {_tell_withdrawal(settings, policy, approved)}"
    )


def _person(by: str) -> str:
    """A name as it stands in the ledger. Raises: ParameterError."""
    name = check_person("--by", unicodedata.normalize("NFC", by.strip()))
    if name.startswith(policy_name("")):
        raise ParameterError("--by: that is how policies sign; name the person who decides")
    return name


@contextmanager
def _waiting_study(
    settings: SiteSettings, policy: SitePolicy, study: str | None = None
) -> Iterator[Participant]:
    """The study that waits at the coordinator.

    Args: study: that it must be. Raises: DecisionRefused: none. ParameterError: another one.
    """
    if study is not None:
        _check_study_id(study)
    check_state_folder(settings.state_dir, party=settings.party, role="site")
    soon = settings.model_copy(update={"wait_s": min(settings.wait_s, LOOK_FOR_S)})
    with ExitStack() as ends:
        try:
            participant = ends.enter_context(joined_study(soon, pinned=policy.roster_sha256))
        except TransportError as error:
            raise DecisionRefused(
                f"no plan waits at {settings.coordinator}: {error}. Nothing was recorded"
            ) from error
        waiting = participant.plan.study_id
        if study not in (None, waiting):
            raise ParameterError(
                f"the waiting plan is of study {waiting}, not {study}; nothing was recorded"
            )
        yield participant


def _check_study_id(study: str) -> None:
    """Refuse what can be no study's name, before anybody is asked for its plan."""
    try:
        TypeAdapter(StudyId).validate_python(study)
    except ValidationError as error:
        raise ParameterError(
            f"study: expected an id of 1 to 64 letters, digits, dots, dashes and underscores, got "
            f"{study[:80]!r}; nothing was recorded. `lada site show` says which study waits"
        ) from error


def _check_read(settings: SiteSettings, plan: StudyPlan, named: str | None) -> None:
    """Nobody approves what they have not read: the plan that was shown here, or one by its hash.

    Raises: DecisionRefused: they have read another one. ParameterError: none, or no hash.
    """
    notes = DecisionNotes(state_dir=settings.state_dir)
    changed = (
        f"the waiting plan of study {plan.study_id} is {plan.hash[:12]}..., not {{}}...: the "
        "coordinator has changed it. Read it with `lada site show`. Nothing was recorded"
    )
    if named is not None:
        if len(named) < _SHORTEST_HASH or not set(named) <= set("0123456789abcdef"):
            raise ParameterError(
                f"--plan: expected the first {_SHORTEST_HASH} or more hexadecimal digits of the "
                f"plan's SHA-256, as `lada site show` prints it, got {named[:64]!a}"
            )
        if not plan.hash.startswith(named):
            raise DecisionRefused(changed.format(named[:12]))
    elif not notes.was_shown(plan):
        other = notes.other_shown(plan)
        if other:
            raise DecisionRefused(changed.format(other[:12]))
        raise ParameterError(
            "nobody has read this plan here: `lada site show` says what it asks. Or name the plan "
            f"that you have read elsewhere: --plan {plan.hash[:12]}. Nothing was recorded"
        )


def _record(
    settings: SiteSettings,
    policy: SitePolicy,
    participant: Participant,
    decision: Decision,
    *,
    by: str,
) -> None:
    """Write a first decision into the ledger, unless somebody was quicker."""
    plan = participant.plan

    def check(latest: DecisionEntry | None) -> None:
        check_first_decision(latest, plan, now=_now())

    with open_own_ledger(settings, policy, plan, signing_key=participant.signing_key) as book:
        book.decide(
            decision,
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=parse_time(plan.expires),
            decided_by=by,
            statement=plan_statement(plan),
            check=check,
        )


def _keep_reason(
    settings: SiteSettings, study: str, plan_hash: str, decision: Decision, *, by: str, why: str
) -> None:
    if why:
        notes = DecisionNotes(state_dir=settings.state_dir)
        notes.note_reason(study, plan_hash, decision, by=by, why=why, at=_now())


def _check_goes_on(settings: SiteSettings, plan: StudyPlan) -> None:
    """Raises: DecisionRefused: this site's part in the study is over, and no run takes it up."""
    ended = read_outcome(study_folder(settings.state_dir, plan.study_id, plan.hash))
    if ended is not None:
        raise DecisionRefused(
            f"study {plan.study_id} is over here ({ended.state} on {ended.ended}); nothing was "
            "recorded. Ask the coordinator for a new study"
        )


def _kept_plan(settings: SiteSettings, decided: DecisionEntry) -> StudyPlan | None:
    """The plan of a decision, if `lada site run` has kept it."""
    folder = study_folder(settings.state_dir, decided.study_id, decided.plan_hash)
    raw = read_if_there(folder / PLAN_FILE)
    return None if raw is None else parse_plan(raw)


def _alone(settings: SiteSettings, work: Callable[[], None]) -> bool:
    """Do something that only one process may; False where `lada site run` is that one."""
    try:
        with shared_state_folder(
            settings.state_dir, party=settings.party, role="site", work=settings.work
        ):
            work()
    except FolderInUse:
        return False
    return True


def _tell(settings: SiteSettings, participant: Participant, code: FailureCode) -> str:
    """Tell the others, or leave it to the process that speaks for this site now."""
    body = {"code": code.value, "message": ""}

    def post() -> None:
        participant.post(Kind.REFUSAL, body)

    try:
        if _alone(settings, post):
            return "The others have been told that, and no reason."
    except (PeerError, TransportError) as error:
        # The decision stands all the same.
        return _not_told(str(error))
    return "`lada site run`, which works here now, tells the others that, and no reason."


def _not_told(reason: str) -> str:
    return f"The others were not told ({reason}); `lada site run` tells them when it is started"


def _tell_withdrawal(settings: SiteSettings, policy: SitePolicy, known: DecisionEntry) -> str:
    if not _alone(settings, lambda: None):
        return "`lada site run`, which works here now, ends with its next step and tells the others"
    try:
        with _waiting_study(settings, policy, known.study_id) as participant:
            if participant.plan.hash == known.plan_hash:
                return _tell(settings, participant, FailureCode.WITHDRAWN)
            reason = "the coordinator has another plan by now"
    except (DecisionRefused, ParameterError, PeerError) as error:
        reason = str(error)
    return _not_told(reason)


def _now() -> datetime:
    return datetime.now(UTC)
