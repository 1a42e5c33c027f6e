"""`lada audit empirical` on a site's own files: what it prints, refuses, finds and leaves alone.

A model from a configuration stands where a study names its small model; all else is real. The
right trainer is flagged with probability at most .05 by the theorem. What it is really: of 150
guesses 100 +- 6 are right (300 simulated runs), and it is flagged from 145 on, 8 standard
deviations away. With an eighth of the noise .001 wrong guesses are expected at most.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lada_clients.audit import canary_audit
from lada_lab.mock.presets import preset_for
from lada_protocol.plan import StudyPlan
from lada_secure.cli import main
from lada_secure.data.records import PoolSample, Record, pool_hash, write_json_lines
from lada_secure.dpsgd import trainer
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.method import training
from lada_secure.method.plan import ReferenceModelPlan
from lada_secure.models.identity import SlmPlan
from lada_secure.privacy.empirical import commitment_of

POOL = tuple(
    PoolSample(sample_id=f"p{at}", question=f"{at} + 1", choices=(), answer=str(at + 1))
    for at in range(9)
)
RECORDS = tuple(
    Record(
        record_id=f"r{at}",
        unit=f"patient-{at // 2}",
        question=f"{at} + 2",
        choices=(),
        answer=str(at + 2),
        rationale=None,
    )
    for at in range(10)
)


POLICY = tomli_w.dumps(
    {
        "roster_sha256": "ab" * 32,
        "population": "patients",
        "target_delta": 1e-6,
        "epsilon_cap_per_study": 8.0,
        "epsilon_cap_total": 16.0,
        "max_records_per_unit": 4,
    }
)


def save_model(folder: Path) -> None:
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    vocabulary |= {letter: at + 3 for at, letter in enumerate("0123456789+= \n")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    ).save_pretrained(folder)


def plan_for(model: Path) -> StudyPlan:
    preset = preset_for("tiny", sites=3, rounds=2, seed=0)
    return StudyPlan(
        study_id="study",
        title=preset.title,
        coordinator="coordinator",
        expires="2020-01-01T00:00:00Z",
        rounds=2,
        min_cohort=3,
        max_cohort=3,
        slm=SlmPlan(),
        embedder=preset.embedder,
        seed=0,
        pool_sha256=pool_hash(POOL),
        pool_size=len(POOL),
        clusters_sha256="0" * 64,
        phase_timeout_s=60.0,
        privacy=preset.privacy.model_copy(update={"target_delta": 1e-6}),
        statistics=preset.statistics,
        training=preset.training.model_copy(
            update={"noise_multiplier": 2.0, "sampling_probability": 0.25, "steps_per_round": 6}
        ),
        distillation=preset.distillation.model_copy(update={"adapter_rank": 4}),
        allocation=preset.allocation.model_copy(update={"quota": 4}),
        paths=preset.paths,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lada mock run` leaves, as far as the audit reads it."""
    root = tmp_path_factory.mktemp("runs") / "first"
    for name in ("export", "site-a", "site-b", "coordinator"):
        (root / name).mkdir(parents=True)
    save_model(root / "model")
    (root / "export" / "plan.json").write_bytes(plan_for(root / "model").to_bytes())
    write_json_lines(root / "coordinator" / "pool.jsonl", POOL)
    for name in ("site-a", "site-b"):
        write_json_lines(root / name / "records.jsonl", RECORDS)
        (root / name / "policy.toml").write_text(POLICY)
        (root / name / "site.toml").write_text(
            tomli_w.dumps(
                {
                    "party": name,
                    "coordinator": "localhost:1",
                    "identity": "identity",
                    "roster": "../roster.json",
                    "policy": "policy.toml",
                    "state_dir": "state",
                    "records": "records.jsonl",
                    "cache_dir": str(root / "cache"),
                    "physical_batch_size": 64,
                    "model": {"slm": str(root / "model"), "device": "cpu"},
                }
            )
        )
    return root


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lada(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process, so that a fault can be planted. Returns: exit status."""
    monkeypatch.setattr(sys, "argv", ["lada", *(str(one) for one in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_shipped_trainer_is_cleared_and_nothing_is_kept_or_spent(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(run.parent)
    size = ("--canaries", "480", "--guesses", "150")
    assert lada(monkeypatch, "audit", "empirical", run, "--site", "site-a", *size, "--json") == 0
    assert files_of(run.parent) == before
    printed, said = capsys.readouterr()
    result = json.loads(printed)
    assert result["schema_version"] == 1
    assert result["stays_at_the_site"] is True
    assert (result["site"], result["records"], result["units"]) == ("site-a", "site", 5)
    assert (result["canaries"], result["guesses"]) == (480, 150)
    assert (result["rounds"], result["steps"], result["delta"]) == (2, 12, 1e-6)
    assert 0.0 <= result["bound"] <= result["epsilon"] < result["largest_bound"]
    assert result["flagged"] is False
    assert (result["attack"], result["engine"]) == ("updates", "fused")
    assert (result["noise"], result["noise_multiplier"]) == ("discrete_gaussian", 2.0)
    assert result["noise_seen"] == pytest.approx(2.0, rel=0.1)
    assert result["statement"]["settings_sha256"] == result["settings_sha256"]
    assert result["statement"]["plan_hash"] == result["plan_hash"]
    opening = result["opening"]
    assert result["commitment"] == commitment_of(
        opening["coins"], opening["salt"], statement=result["statement"]
    )
    # Told before the first step, so that it can be noted down.
    assert said.index(result["commitment"]) < said.index("step 1 of 12")
    assert "step 12 of 12" in said


def test_noise_eight_times_too_small_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "DiscreteGaussian", lambda std: DiscreteGaussian(std / 8))
    size = ("--canaries", "480", "--guesses", "150")
    assert lada(monkeypatch, "audit", "empirical", run, "--site", "site-b", *size) == 1
    printed, _ = capsys.readouterr()
    assert "LEAKS MORE THAN CLAIMED" in printed
    seen = re.search(r"noise multiplier 2 claimed, ([0-9.]+) seen", printed)
    assert seen is not None
    assert float(seen[1]) == pytest.approx(0.25, rel=0.1)
    assert "This result stays at the site" in printed


def test_public_samples_in_place_of_records_make_a_result_for_anybody(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = lada(
        monkeypatch, "audit", "empirical", "--plan", run / "export" / "plan.json",
        "--settings", run / "site-a" / "site.toml", "--pool", run / "coordinator" / "pool.jsonl",
        "--records", "public", "--rounds", "1", "--attack", "adapters",
    )  # fmt: skip
    printed, _ = capsys.readouterr()
    assert status == 0
    assert "9 units (public samples), 1 rounds of 6 steps" in printed
    assert "attack adapters" in printed
    assert "may be shown to anybody" in printed
    assert "no contradiction" in printed


def test_private_records_are_not_read_for_a_public_result(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (run / "site-a" / "site.toml").read_text()
    elsewhere = tmp_path / "site.toml"
    elsewhere.write_text(text.replace("records.jsonl", "not-there.jsonl"))
    (tmp_path / "policy.toml").write_text(POLICY)
    common = ("--plan", run / "export" / "plan.json", "--settings", elsewhere, "--rounds", "1")
    pool = ("--pool", run / "coordinator" / "pool.jsonl")
    assert lada(monkeypatch, "audit", "empirical", *common, *pool, "--records", "public") == 0
    assert lada(monkeypatch, "audit", "empirical", *common, *pool) == 2
    assert "not-there.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "expected DIR and --site, or --plan", id="nothing"),
        pytest.param(["RUN"], "--site: expected one of site-a, site-b, got none", id="no site"),
        pytest.param(["RUN", "--site", "site-z"], "got 'site-z'", id="another site"),
        pytest.param(["RUN/export", "--site", "site-a"], "is no finished mock run", id="folder"),
        pytest.param(["RUN", "--site", "site-a", "--pool", "x"], "not both", id="both ways"),
        pytest.param(["--plan", "RUN/export/plan.json"], "--plan and --settings", id="half a way"),
        pytest.param(
            ["--plan", "RUN/none.json", "--settings", "RUN/site-a/site.toml"],
            "cannot read plan",
            id="no plan",
        ),
        pytest.param(
            ["--plan", "RUN/site-a/site.toml", "--settings", "RUN/site-a/site.toml"],
            "is no study plan",
            id="another file as plan",
        ),
        pytest.param(
            ["--plan", "RUN/export/plan.json", "--settings", "RUN/export/plan.json"],
            "plan.json",
            id="another file as settings",
        ),
        pytest.param(
            ["--plan", "RUN/export/plan.json", "--settings", "RUN/site-a/site.toml",
             "--records", "public"],
            "--pool",
            id="public records without a pool",
        ),
        pytest.param(["RUN", "--site", "site-a", "--rounds", "0"], "--rounds", id="no round"),
        pytest.param(["RUN", "--site", "site-a", "--rounds", "3"], "1 to 2", id="extra rounds"),
        pytest.param(["RUN", "--site", "site-a", "--canaries", "9"], "9 canaries show", id="m"),
        pytest.param(
            ["RUN", "--site", "site-a", "--canaries", "2200", "--guesses", "2201"],
            "guesses: expected 1 to 2200",
            id="more guesses than canaries",
        ),
        pytest.param(["RUN", "--site", "site-a", "--attack", "magic"], "attack", id="attack"),
    ],
)  # fmt: skip
def test_wrong_requests_end_with_status_2_and_one_message(
    arguments: list[str],
    message: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    before = files_of(run.parent)
    given = [one.replace("RUN", str(run)) for one in arguments]
    assert lada(monkeypatch, "audit", "empirical", *given) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert message in said
    assert "Traceback" not in said
    assert files_of(run.parent) == before


def test_a_pool_that_the_plan_does_not_name_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "pool.jsonl"
    write_json_lines(other, [replace(POOL[0], answer="7"), *POOL[1:]])
    status = lada(
        monkeypatch, "audit", "empirical", "--plan", run / "export" / "plan.json",
        "--settings", run / "site-a" / "site.toml", "--pool", other,
    )  # fmt: skip
    assert status == 2
    assert "is not the pool that the plan names" in capsys.readouterr().err


def guided(plan: StudyPlan, **changes: object) -> StudyPlan:
    """The plan with a guide that trains on records with reasons, at half the rate every round."""
    guide = ReferenceModelPlan(
        records_with_reasons=True,
        own_paths=1,
        least_share=0.25,
        rate_decay=0.5,
        private_share=0.5,
        pool_steps=2,
        last_pool_steps=2,
        pool_learning_rate=1e-2,
        finish=False,
        own_reasons=True,
    )
    return plan.model_copy(update={"guide": guide.model_copy(update=changes)})


@dataclass(frozen=True)
class Recipe:
    """What one round's `distil` was asked to train on."""

    units: list[list[str]]
    pool: int
    learning_rate: float
    pool_batch_size: int


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What every audited round trains on, seen where the trainer gets it."""
    found: list[Recipe] = []
    real = canary_audit.distil

    def recorded(lm: object, *, units: Any, pool: Any, settings: Any, **rest: Any) -> Any:
        def read(paid: Any) -> Any:
            units_read = units(paid)
            found.append(
                Recipe(
                    units=[[one.path for one in unit.examples] for unit in units_read],
                    pool=len(pool),
                    learning_rate=settings.learning_rate,
                    pool_batch_size=settings.pool_batch_size,
                )
            )
            return units_read

        return real(lm, units=read, pool=pool, settings=settings, **rest)

    monkeypatch.setattr(canary_audit, "distil", recorded)
    return found


def audit_with(run: Path, folder: Path, plan: StudyPlan) -> tuple[str | Path, ...]:
    """Arguments that audit site-a under another plan, with two records that have reasons."""
    (folder / "plan.json").write_bytes(plan.to_bytes())
    told = [replace(one, rationale="2+") for one in RECORDS[:2]]
    write_json_lines(folder / "records.jsonl", [*told, *RECORDS[2:]])
    (folder / "policy.toml").write_text(POLICY)
    (folder / "site.toml").write_text((run / "site-a" / "site.toml").read_text())
    return ("--plan", folder / "plan.json", "--settings", folder / "site.toml",
            "--pool", run / "coordinator" / "pool.jsonl")  # fmt: skip


def test_with_a_guide_the_audit_trains_the_private_stream_as_the_site_does(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipes: list[Recipe]
) -> None:
    plan = guided(plan_for(run / "model"))
    monkeypatch.setattr(
        training,
        "self_generated_rationales",
        lambda _lm, units, **_sizes: [tuple("0+\n1" for _ in unit.records) for unit in units],
    )
    arguments = audit_with(run, tmp_path, plan)
    size = ("--canaries", "480", "--guesses", "150")
    assert lada(monkeypatch, "audit", "empirical", *arguments, *size) == 0
    first, second = recipes
    # Private records alone: those with reasons, then also those that the model gives reasons for.
    assert sorted(path for unit in first.units for path in unit) == ["2+\n2", "2+\n3"]
    assert sum(len(unit) for unit in second.units) == len(RECORDS)
    assert (first.pool, first.pool_batch_size, second.pool) == (0, 0, 0)
    assert second.learning_rate == pytest.approx(first.learning_rate / 2)


def test_a_last_round_that_starts_from_the_llms_paths_is_not_audited_and_the_message_says_why(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipes: list[Recipe],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = audit_with(run, tmp_path, guided(plan_for(run / "model"), finish=True))
    size = ("--canaries", "480", "--guesses", "150")
    assert lada(monkeypatch, "audit", "empirical", *arguments, *size) == 0
    assert len(recipes) == 1
    assert lada(monkeypatch, "audit", "empirical", *arguments, *size, "--rounds", "2") == 2
    assert "guide.finish starts the last round from a student" in capsys.readouterr().err


SENTINELS = ("SENTINEL", "Mustermann", "MRN-0000")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"Mustermann, Erika": "SENTINEL"}', id="a name as a key"),
        pytest.param(b'{"record_id": "SENTINEL" Mustermann', id="not JSON"),
        pytest.param(b'{"record_id": "SENTINEL\xff"}', id="not UTF-8"),
        pytest.param(
            b'{"answer": "SENTINEL\\nSENTINEL", "choices": ["SENTINEL", "SENTINEL"], "question": '
            b'"SENTINEL", "rationale": "SENTINEL", "record_id": "MRN-0000", "unit": "Mustermann"}',
            id="in every field",
        ),
    ],
)
def test_a_bad_record_ends_the_audit_by_line_and_nothing_of_it_is_shown(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: bytes,
) -> None:
    arguments = audit_with(run, tmp_path, plan_for(run / "model"))
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert lada(monkeypatch, "audit", "empirical", *arguments) == 2
    printed, said = capsys.readouterr()
    assert f"records.jsonl:{len(RECORDS) + 1}: " in said
    assert not any(secret in printed + said for secret in SENTINELS)
