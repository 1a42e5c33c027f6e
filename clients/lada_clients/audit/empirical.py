"""Attacks a site's actual training settings on its own machine; no network, nothing released.

Reads the study's plan and the site's settings, trains as the site would with canaries among its
units, and keeps nothing: neither adapters nor a ledger entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from lada_clients.audit.canary_audit import (
    Attack,
    AuditedSteps,
    TrainingAudit,
    audit_size,
    audit_training,
    auditable_rounds,
)
from lada_clients.audit.folder import MOCK_EXPORT
from lada_clients.site.gates.files import check_files
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.party_files import read_settings
from lada_protocol.plan import StudyPlan, parse_plan
from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.records import PoolSample, pool_hash, read_pool
from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.errors import ParameterError, PeerError
from lada_secure.method.mechanisms import privacy_parameters
from lada_secure.method.training import adapter_settings, private_units, trainer_settings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import load_language_model
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN
from lada_secure.privacy.release.units import Unit

SCHEMA_VERSION: Final = 1
Records: TypeAlias = Literal["site", "public"]
# Folder and file of the public pool in a mock run.
_MOCK_POOL: Final = ("coordinator", "pool.jsonl")
_MOCK_SETTINGS: Final = "site.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSite:
    """What is attacked. `pool` is empty where the public pool is not at hand."""

    plan: StudyPlan
    settings: SiteSettings
    pool: tuple[PoolSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAudit:
    """Outcome of an audit of one site's training. It stays at the site unless records="public"."""

    study_id: str
    plan_hash: str
    site: str
    records: Records
    units: int
    settings_sha256: str
    audit: TrainingAudit

    def to_json(self) -> dict[str, Json]:
        """The machine-readable result, schema version 1."""
        audit = self.audit
        return {
            "schema_version": SCHEMA_VERSION,
            "stays_at_the_site": self.records == "site",
            "study_id": self.study_id,
            "plan_hash": self.plan_hash,
            "site": self.site,
            "records": self.records,
            "units": self.units,
            "attack": audit.attack,
            "canaries": audit.counts.canaries,
            "guesses": audit.counts.guesses,
            "correct": audit.counts.correct,
            "confidence": audit.steps.confidence,
            "bound": audit.bound,
            "largest_bound": audit.reach,
            "epsilon": audit.epsilon,
            "delta": audit.steps.delta,
            "flagged": audit.flagged,
            "rounds": audit.steps.rounds,
            "steps": audit.steps.count,
            "noise": DISCRETE_GAUSSIAN,
            "noise_multiplier": audit.steps.privacy.noise_multiplier,
            "noise_seen": audit.noise_seen,
            "engine": audit.engine,
            "device": audit.device,
            "trainable_parameters": audit.trainable_parameters,
            "settings_sha256": self.settings_sha256,
            "commitment": audit.commitment,
            "statement": audit.statement,
            "opening": audit.opening,
        }


def read_mock_site(folder: Path, site: str | None) -> AuditedSite:
    """A site of a mock run, with the run's plan and pool.

    Raises: ParameterError: not a mock run, or no such site in it.
    """
    plan = folder / MOCK_EXPORT / PLAN_FILE
    sites = sorted(path.parent.name for path in folder.glob(f"*/{_MOCK_SETTINGS}"))
    if not sites or not plan.exists():
        raise ParameterError(
            f"{folder} is no finished mock run: expected {MOCK_EXPORT}/{PLAN_FILE} and a folder "
            f"with {_MOCK_SETTINGS} per site, as `lada mock run --out` writes them; elsewhere "
            "name the files with --plan and --settings"
        )
    if site not in sites:
        got = "none" if site is None else repr(site)
        raise ParameterError(f"--site: expected one of {', '.join(sites)}, got {got}")
    return read_site(
        plan=plan,
        settings=folder / site / _MOCK_SETTINGS,
        pool=folder.joinpath(*_MOCK_POOL),
    )


def read_site(*, plan: Path, settings: Path, pool: Path | None) -> AuditedSite:
    """A site from its own files; nothing is looked at but what these name.

    Raises: ParameterError: naming the file and what is wrong with it.
    """
    try:
        study = parse_plan(plan.read_bytes())
    except OSError as error:
        raise ParameterError(f"cannot read plan {plan}: {error.strerror}") from error
    except PeerError as error:
        raise ParameterError(f"{plan} is no study plan: {error}") from error
    samples = () if pool is None else read_pool(pool)
    if samples and pool_hash(samples) != study.pool_sha256:
        raise ParameterError(f"{pool} is not the pool that the plan names; leave it out or fix it")
    return AuditedSite(plan=study, settings=read_settings(settings, SiteSettings), pool=samples)


def audit_site(
    site: AuditedSite,
    *,
    attack: Attack = "updates",
    records: Records = "site",
    canaries: int | None = None,
    guesses: int | None = None,
    rounds: int | None = None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> SiteAudit:
    """Load the site's model, train it with canaries, guess, and throw it away.

    Args: records: "site" for the site's own, "public" for the pool's samples in their place, which
        makes a result that may be shown to anybody. canaries, guesses, rounds: None leaves them to
        the audit, and rounds to what can be audited. say: gets a line of text at every stage.
        progress: steps done, steps in all.
    Raises: ParameterError: before any training, where a wish or a file is wrong.
    """
    plan = site.plan
    if rounds is not None and not 1 <= rounds <= plan.rounds:
        raise ParameterError(f"--rounds: expected 1 to {plan.rounds}, the plan's, got {rounds}")
    units = _units(site, records)
    say(f"loading {plan.slm} ...")
    lm = load_language_model(
        plan.slm, cache_dir=site.settings.cache_dir, calling=site.settings.model.calling
    )
    shape = adapter_settings(plan, layers=int(lm.model.config.num_hidden_layers))
    attach_adapters(lm, shape)
    privacy, delta = privacy_parameters(plan), plan.privacy.target_delta
    # With `guide.finish`, the last round's DP-SGD starts from a student of the LLM's paths.
    most = plan.rounds - (plan.guide is not None and plan.guide.finish)
    # With no round that can be audited, `audit_size` says why.
    every = AuditedSteps(privacy=privacy, rounds=most, delta=delta)
    rounds = rounds or max(auditable_rounds(lm, every), 1)
    if rounds > most:
        raise ParameterError(
            f"--rounds: expected 1 to {most}, got {rounds}: the plan's guide.finish starts the "
            "last round from a student of the LLM's paths, which only a study has"
        )
    if rounds < plan.rounds:
        say(f"auditing {rounds} of {plan.rounds} rounds and what these cost")
    steps = AuditedSteps(privacy=privacy, rounds=rounds, delta=delta)
    size = audit_size(lm, steps, canaries=canaries, guesses=guesses)
    say(
        f"{len(units)} units and {size.canaries} canaries, {size.guesses} guesses, {rounds} "
        f"rounds; the ledger would say epsilon {size.epsilon:.3f}, all guesses right would show "
        f"{size.reach:.3f}"
    )
    settings_sha256 = _settings_hash(site, shape, privacy, rounds=rounds)
    audit = audit_training(
        lm,
        steps,
        units_of=lambda round_id: (
            units
            if isinstance(units, tuple)
            else private_units(
                plan, lm, units, round_id=round_id, batch_size=site.settings.physical_batch_size
            )
        ),
        pool_of=lambda round_id: _pool(site, round_id),
        settings_of=lambda round_id: trainer_settings(
            plan, site.settings.execution, round_id=round_id
        ),
        size=size,
        attack=attack,
        statement={
            "plan_hash": plan.hash,
            "settings_sha256": settings_sha256,
            "site": site.settings.party,
        },
        announce=lambda commitment: say(f"coins are thrown and sealed: {commitment}"),
        progress=progress,
    )
    return SiteAudit(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        site=site.settings.party,
        records=records,
        units=len(units),
        settings_sha256=settings_sha256,
        audit=audit,
    )


def _settings_hash(
    site: AuditedSite, shape: AdapterSettings, privacy: DpSgdParameters, *, rounds: int
) -> str:
    guide = site.plan.guide
    settings = {
        "adapters": asdict(shape),
        "guide": None if guide is None else guide.model_dump(mode="json"),
        "privacy": asdict(privacy),
        "rounds": rounds,
        "trainer": asdict(trainer_settings(site.plan, site.settings.execution, round_id=0)),
    }
    return sha256_hex(canonical_json(settings))


def _units(site: AuditedSite, records: Records) -> list[Unit] | tuple[PrivateUnit, ...]:
    """The site's bounded units, or the public samples that stand in for what is read of them."""
    if records == "site":
        policy = read_settings(site.settings.policy, SitePolicy)
        files = check_files(site.settings, policy)
        bound = site.plan.privacy.max_records_per_unit
        return list(files.units(policy, max_records_per_unit=bound))
    if not site.pool:
        raise ParameterError("--records public: name the study's public pool with --pool")
    return tuple(
        PrivateUnit(unit_id=f"public:{one.sample_id}", examples=(_example(one),))
        for one in site.pool
    )


def _pool(site: AuditedSite, round_id: int) -> Sequence[RationaleExample]:
    """As many public samples as a round allocates, each with its gold answer for a path.

    None with a guide: DP-SGD reads private records alone there.
    """
    if site.plan.guide is not None:
        return ()
    count = min(site.plan.allocation.quota, len(site.pool))
    return [_example(site.pool[(round_id * count + at) % len(site.pool)]) for at in range(count)]


def _example(sample: PoolSample) -> RationaleExample:
    return RationaleExample(
        example_id=sample.sample_id,
        prompt=prompt_of(sample.question, sample.choices),
        path=rationale_of(sample.answer, sample.choices, None),
        rejected=None,
    )
