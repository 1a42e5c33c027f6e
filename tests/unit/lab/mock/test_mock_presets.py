"""Presets are studies that an operator could have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from lada_clients.auditor.runner import AuditorSettings
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import free_port, party_children, policy_table, write_run
from lada_lab.mock.presets import PRESETS, by_strategy, preset_for, rivals_of
from lada_lab.mock.progress import PartyProgress, bytes_text, event_line
from lada_lab.worlds.federation import build_federation
from lada_protocol.events import EventLog, FellBack, parse_event
from lada_protocol.plan import StudyPlan
from lada_protocol.settings import parse_settings
from lada_secure.errors import ParameterError
from lada_server.settings import ServerSettings, StudySettings

DIGEST = "ab" * 32


def test_a_run_may_allocate_by_another_strategy_than_its_presets() -> None:
    preset = preset_for("demo", sites=3, rounds=None, seed=0, strategy="random")
    assert preset.study_table()["allocation"]["strategy"] == "random"
    usual = preset_for("demo", sites=3, rounds=None, seed=0)
    assert usual.study_table()["allocation"]["strategy"] == "gain"
    with pytest.raises(ParameterError, match=r"expected one of .*domain.*, got 'best'"):
        preset_for("demo", sites=3, rounds=None, seed=0, strategy="best")


def test_another_strategy_brings_no_value_of_samples_with_it() -> None:
    chains = preset_for("chains", sites=3, rounds=None, seed=0)
    assert chains.allocation.sample_value == "gain"
    assert by_strategy(chains, chains.allocation.strategy) == chains
    for other in rivals_of(chains, ["domain", "random"]):
        assert other.allocation.sample_value is None
        # Nothing else differs: data, models, noise and steps are the study's.
        assert other.model_copy(update={"allocation": chains.allocation}) == chains
    for wrong in (["valued_gain"], ["random", "random"]):
        with pytest.raises(ParameterError, match="expected other strategies than valued_gain"):
            rivals_of(chains, wrong)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_study_file_of_a_preset_is_a_study(name: str) -> None:
    preset = preset_for(name, sites=3, rounds=None, seed=0)
    text = tomli_w.dumps(preset.study_table())
    study = parse_settings(text.encode(), StudySettings, where="study.toml")
    parts = ("privacy", "statistics", "training", "distillation", "allocation", "paths")
    for part in (*parts, "uplink", "guide"):
        assert getattr(study, part) == getattr(preset, part)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_makes_a_valid_plan_within_its_sites_policy(name: str) -> None:
    preset = preset_for(name, sites=3, rounds=None, seed=0)
    plan = StudyPlan(
        study_id="mock",
        title=preset.title,
        coordinator="coordinator",
        expires="2030-01-01T00:00:00Z",
        rounds=preset.rounds,
        min_cohort=3,
        max_cohort=3,
        slm=preset.slm,
        embedder=preset.embedder,
        seed=0,
        pool_sha256=DIGEST,
        pool_size=100,
        clusters_sha256=DIGEST,
        phase_timeout_s=preset.phase_timeout_s,
        privacy=preset.privacy,
        statistics=preset.statistics,
        training=preset.training,
        distillation=preset.distillation,
        allocation=preset.allocation,
        paths=preset.paths,
        uplink=preset.uplink,
        guide=preset.guide,
    )
    text = tomli_w.dumps(policy_table(preset, roster_sha256=DIGEST, population="site-a.records"))
    policy = parse_settings(text.encode(), SitePolicy, where="policy.toml")
    assert plan.privacy.epsilon_cap <= policy.epsilon_cap_per_study <= policy.epsilon_cap_total
    assert plan.privacy.target_delta <= policy.target_delta
    assert plan.privacy.max_records_per_unit <= policy.max_records_per_unit
    assert plan.training.pool_gradients in policy.pool_gradients
    # A sum of sigma below 16 integer steps is refused (discrete Gaussian, accounted as Gaussian).
    assert plan.statistics.noise_multiplier * plan.statistics.integer_scale * 2**0.5 >= 16


@pytest.mark.parametrize(
    ("name", "sites", "rounds", "seed", "message"),
    [
        ("huge", 3, None, 0, "--preset"),
        ("tiny", 2, None, 0, "--sites"),
        ("tiny", 0, None, 0, "--sites"),
        ("tiny", 1_000, None, 0, "--sites"),
        ("tiny", 3, 0, 0, "--rounds"),
        ("tiny", 3, None, -1, "--seed"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    name: str, sites: int, rounds: int | None, seed: int, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        preset_for(name, sites=sites, rounds=rounds, seed=seed)


def test_every_party_gets_settings_that_its_own_command_reads(tmp_path: Path) -> None:
    data = build_federation("tiny", sites=3, seed=0)
    preset = preset_for("tiny", sites=3, rounds=None, seed=0)
    layout = RunLayout(root=tmp_path / "run", site_ids=tuple(data.sites))
    write_run(layout, preset, data, port=free_port(0), cache_dir=tmp_path / "cache")
    models = {"coordinator": ServerSettings, "auditor": AuditorSettings}
    for child in party_children(layout):
        path = Path(child.arguments[-1])
        model = models.get(child.name, SiteSettings)
        settings = parse_settings(path.read_bytes(), model, where=str(path))
        assert settings.party == child.name
        assert (path.parent / settings.roster).resolve() == layout.roster
    for site_id in layout.site_ids:
        raw = (layout.site(site_id).root / "policy.toml").read_bytes()
        assert parse_settings(raw, SitePolicy, where="policy").population == f"{site_id}.records"


def test_bytes_have_decimal_units() -> None:
    sizes = (0, 999, 1_000, 1_500_000, 2_100_000_000, 5e12)
    texts = ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.1 GB", "5000.0 GB"]
    assert [bytes_text(size) for size in sizes] == texts


def test_a_fallback_is_a_line_of_the_plain_log_with_its_reason() -> None:
    lines: list[bytes] = []
    log = EventLog(party="site-a", sink=lines.append, clock=lambda: 12.0)
    log.write(
        FellBack,
        round_id=0,
        step="distillation",
        action="no_pool",
        cause="llm_weaker",
        because="the LLM is weaker",
    )
    told = event_line(parse_event(lines[0]), started_s=10.0)
    assert told is not None
    assert told.endswith("site-a        round 1 falls back: the LLM is weaker")
    with pytest.raises(ParameterError, match="cause"):
        parse_event(lines[0].replace(b"llm_weaker", b"whim"))


def test_a_party_without_events_is_starting() -> None:
    assert PartyProgress(party="site-a").phase == "starting"
