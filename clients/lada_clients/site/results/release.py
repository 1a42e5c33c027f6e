"""Whether a round's model is a committed release of the site's ledger: what may leave, and why.

A student is the output of DP-SGD, or is computed from such outputs and public data alone. So every
reservation of the rounds up to it must have an output, and DP-SGD all of its parts. That a file of
adapters is what these rounds left is told by its hash in the site's state, and, where DP-SGD came
last, by the output itself, number by number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lada_clients.site.ledger.budget import SiteBudget, read_budget
from lada_clients.site.ledger.population import ledger_path
from lada_clients.site.ledger.store import open_ledger_reader
from lada_clients.site.results.study import SiteStudy
from lada_secure.dpsgd.state import read_state
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.method.plan import TRAINING
from lada_secure.method.training import trainer_settings
from lada_secure.models.adapters import AdapterWeights, load_adapters, trainable_parameters
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    DecisionEntry,
    LedgerEntry,
    ReleaseKey,
    ReserveEntry,
)
from lada_secure.privacy.ledger.verification import StudySpending

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedModel:
    """Adapters that may leave, and the ledger's word for it.

    spending: of the study. paid_by: hash of the reservation of the round's last training steps.
    approved_by: who approved the plan, with the time.
    """

    round_id: int
    weights: AdapterWeights
    budget: SiteBudget
    spending: StudySpending
    paid_by: str
    approved_by: tuple[str, str]

    @property
    def head(self) -> LedgerEntry:
        """The ledger's newest entry."""
        return self.budget.summary.entries[-1]


def released_model(study: SiteStudy, round_id: int, lm: LanguageModel) -> ReleasedModel:
    """The round's adapters, checked to be a release; `lm` wears them afterwards.

    Args: lm: of `SiteStudy.open_model`, as it was opened.
    Raises: LedgerError: names what the ledger lacks, or that it is damaged. ParameterError: the
        adapters are missing, or not those of the round.
    """
    plan, budget = study.plan, read_budget(study.settings_path)
    identity = budget.summary.identity
    if (identity.site, identity.population) != (study.settings.party, study.policy.population):
        raise LedgerError(
            f"the ledger is of {identity.population} at {identity.site}, the settings are of "
            f"{study.policy.population} at {study.settings.party}; open the right file"
        )
    entries = [one for one in budget.summary.entries if getattr(one, "plan_hash", "") == plan.hash]
    approval = _approval(entries, study)
    last = _check_committed(entries, study, round_id)
    weights, known = study.memory.student(round_id)
    fresh = _frozen(lm)
    load_adapters(lm, weights)
    _check_frozen(fresh, lm, round_id)
    ends_with_dp_sgd = plan.guide is None or plan.finishes(round_id)
    if ends_with_dp_sgd:
        _check_output(study, last, lm)
    elif not known:
        raise LedgerError(
            f"adapters of round {round_id}: the state of this study names the last round's alone, "
            "so nothing tells that the file is what the round left; export the last round"
        )
    (spending,) = (one for one in budget.summary.studies if one.study_id == plan.study_id)
    return ReleasedModel(
        round_id=round_id,
        weights=weights,
        budget=budget,
        spending=spending,
        paid_by=last.reserve_hash,
        approved_by=(approval.decided_by, approval.time),
    )


def _approval(entries: Sequence[LedgerEntry], study: SiteStudy) -> DecisionEntry:
    decisions = [one for one in entries if isinstance(one, DecisionEntry)]
    if not decisions or decisions[-1].decision != "approve":
        said = decisions[-1].decision if decisions else "none"
        raise LedgerError(
            f"study {study.plan.study_id}: the last decision on its plan in the ledger is {said}, "
            "expected approve; nothing of it may leave"
        )
    return decisions[-1]


def _check_committed(
    entries: Sequence[LedgerEntry], study: SiteStudy, round_id: int
) -> CommitEntry:
    """Returns: the commit of the round's last training steps."""
    plan = study.plan
    commits = {one.key: one for one in entries if isinstance(one, CommitEntry)}
    wanted = {
        one.key for one in entries if isinstance(one, ReserveEntry) and one.round_id <= round_id
    }
    last: ReleaseKey | None = None
    for earlier in range(round_id + 1):
        size = trainer_settings(plan, study.settings.execution, round_id=earlier)
        parts = -(-plan.training.steps_per_round // size.steps_per_reservation)
        for chunk in range(parts):
            last = ReleaseKey(
                study_id=plan.study_id, round_id=earlier, purpose=TRAINING, chunk=chunk
            )
            wanted.add(last)
    missing = sorted(map(str, wanted - commits.keys()))
    if missing or last is None:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise LedgerError(
            f"round {round_id} of study {plan.study_id} is no committed release: the ledger has no "
            f"output of {'; '.join(missing[:_SHOWN])}{more}. Only committed weights may leave; let "
            "`lada site run` finish the round, or choose an earlier one with --round"
        )
    return commits[last]


def _frozen(lm: LanguageModel) -> dict[str, Tensor]:
    """Copies of the adapters' numbers that no training moves: they follow from plan and model."""
    return {
        name: parameter.detach().clone()
        for name, parameter in lm.model.named_parameters()
        if "lora_" in name and not parameter.requires_grad
    }


def _check_frozen(fresh: Mapping[str, Tensor], lm: LanguageModel, round_id: int) -> None:
    """Raises: LedgerError: the file has other frozen numbers than a fresh model of the plan."""
    now = _frozen(lm)
    if any(not now[name].equal(value) for name, value in fresh.items()):
        raise LedgerError(
            f"adapters-round-{round_id}.safetensors has frozen numbers that do not follow from the "
            "plan, so no release has them: put the file back from its backup. Nothing was exported"
        )


def _check_output(study: SiteStudy, commit: CommitEntry, lm: LanguageModel) -> None:
    """The model's trained numbers are those of the stored output."""
    with open_ledger_reader(ledger_path(study.settings, study.policy)) as ledger:
        raw = ledger.stored_output(commit.key)
    if raw is None:
        raise LedgerError(f"entry {commit.index}: its output is not stored")
    try:
        stored = read_state(raw).tensors
    except ParameterError as error:
        raise LedgerError(f"entry {commit.index}: {error}") from error
    for at, parameter in enumerate(trainable_parameters(lm.model)):
        found = stored.get(f"{at}.value")
        if found is None or not found.equal(parameter.detach().cpu()):
            raise LedgerError(
                f"adapters-round-{commit.round_id}.safetensors is not what entry {commit.index} of "
                "the ledger has released: put the file back from its backup. Nothing was exported"
            )
