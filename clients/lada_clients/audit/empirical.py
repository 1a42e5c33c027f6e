"""Attacks a site's actual training settings on its own machine; no network, nothing released.

Reads the study's plan and the site's settings, trains as the site would with canaries among its
units, and keeps nothing: neither adapters nor a ledger entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from lada_secure.data.records import PoolSample, pool_hash, read_pool
from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.errors import ParameterError, PeerError
from lada_secure.method.mechanisms import adapter_settings, privacy_parameters
from lada_secure.method.training import private_units, trainer_settings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import load_language_model
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN
from lada_secure.privacy.release.units import Unit
from lada_secure.storage.whole_files import read_file

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
    records: Records
    units: int
    audit: TrainingAudit

    def to_json(self) -> dict[str, Json]:
        """The machine-readable result, schema version 1."""
        facts = asdict(self)
        return {
            "schema_version": SCHEMA_VERSION,
            "stays_at_the_site": self.records == "site",
            "noise": DISCRETE_GAUSSIAN,
            **self.audit.statement,
            **facts.pop("audit"),
            **facts,
        }

    def sentences(self, *, seconds: float) -> Iterator[str]:
        """The result for people. seconds: that it took."""
        audit, own = self.audit, self.records == "site"
        yield (
            f"site {audit.statement['site']}, study {self.study_id}: {self.units} units "
            f"({'its own' if own else 'public samples'}), {audit.rounds} rounds of "
            f"{audit.steps // audit.rounds} steps, engine {audit.engine} on {audit.device}"
        )
        yield (
            f"attack {audit.attack}: {audit.correct} of {audit.guesses} guesses right about "
            f"{audit.canaries} canaries ({seconds:.0f} s)"
        )
        yield (
            f"epsilon at least {audit.bound:.3f} by the attack, at {audit.confidence:.0%} "
            f"confidence (all right would be {audit.largest_bound:.3f})"
        )
        yield f"epsilon at most  {audit.epsilon:.3f} by the ledger, delta {audit.delta:g}"
        if audit.noise_seen is not None:
            yield (
                f"noise multiplier {audit.noise_multiplier:g} claimed, {audit.noise_seen:.3g} seen "
                "(real gradients included)"
            )
        yield f"coins sealed as {audit.commitment}; opening with --json"
        yield (
            "LEAKS MORE THAN CLAIMED: do not train with this software and these settings"
            if audit.flagged
            else "no contradiction: the attack shows less than the ledger allows"
        )
        yield (
            "This result stays at the site: it was computed from private records without noise."
            if own
            else "Computed from public samples alone: this result may be shown to anybody."
        )


def read_site(
    folder: Path | None,
    site: str | None,
    *,
    plan: Path | None = None,
    settings: Path | None = None,
    pool: Path | None = None,
) -> AuditedSite:
    """A site of a finished mock run, or one by its own files; nothing else is looked at.

    Args: folder, site: of the mock run, whose plan and pool are read. plan, settings, pool: the
        files, where there is no mock run.
    Raises: ParameterError: not exactly one of both; or naming the file and what is wrong with it.
    """
    if folder is not None:
        if (plan, settings, pool) != (None, None, None):
            raise ParameterError(
                "either DIR and --site, or --plan and --settings (and --pool), not both"
            )
        plan, settings, pool = _mock_files(folder, site)
    elif plan is None or settings is None or site is not None:
        raise ParameterError("expected DIR and --site, or --plan and --settings")
    try:
        study = parse_plan(read_file(plan, what="plan "))
    except PeerError as error:
        raise ParameterError(f"{plan} is no study plan: {error}") from error
    samples = () if pool is None else read_pool(pool)
    if samples and pool_hash(samples) != study.pool_sha256:
        raise ParameterError(f"{pool} is not the pool that the plan names; leave it out or fix it")
    return AuditedSite(plan=study, settings=read_settings(settings, SiteSettings), pool=samples)


def _mock_files(folder: Path, site: str | None) -> tuple[Path, Path, Path]:
    """Plan, settings and pool of a site in a mock run."""
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
    return plan, folder / site / _MOCK_SETTINGS, folder.joinpath(*_MOCK_POOL)


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
    slm = str(site.settings.slm_folder)
    say(f"loading {slm} ...")
    lm = load_language_model(
        slm,
        cache_dir=site.settings.cache_dir,
        calling=site.settings.model.calling,
        placement=site.settings.model.placement,
    ).with_form(plan.form)
    shape = adapter_settings(plan.distillation, lm, seed=plan.seed)
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
            "settings_sha256": _settings_hash(site, shape, privacy, rounds=rounds),
            "site": site.settings.party,
        },
        announce=lambda commitment: say(f"coins are thrown and sealed: {commitment}"),
        progress=progress,
    )
    return SiteAudit(study_id=plan.study_id, records=records, units=len(units), audit=audit)


def _settings_hash(
    site: AuditedSite, shape: AdapterSettings, privacy: DpSgdParameters, *, rounds: int
) -> str:
    guide = site.plan.guide
    settings = {
        "adapters": asdict(shape),
        "placement": asdict(site.settings.model.placement),
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
        PrivateUnit(unit_id=f"public:{one.sample_id}", examples=(_example(site.plan, one),))
        for one in site.pool
    )


def _pool(site: AuditedSite, round_id: int) -> Sequence[RationaleExample]:
    """As many public samples as a round allocates, each with its gold answer for a path.

    None with a guide: DP-SGD reads private records alone there.
    """
    if site.plan.guide is not None:
        return ()
    count = min(site.plan.allocation.quota, len(site.pool))
    return [
        _example(site.plan, site.pool[(round_id * count + at) % len(site.pool)])
        for at in range(count)
    ]


def _example(plan: StudyPlan, sample: PoolSample) -> RationaleExample:
    return RationaleExample(
        example_id=sample.sample_id,
        prompt=plan.form.prompt(sample.question, sample.choices),
        path=plan.form.target(sample.answer, sample.choices, None),
        rejected=None,
    )
