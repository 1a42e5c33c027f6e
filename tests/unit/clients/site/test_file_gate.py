"""The file gate: everything that files, plan and model say is found before anything is promised."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch
from architecture_doubles import family_folder
from method_doubles import ledger
from rich.console import Console
from site_doubles import POOL, file_of, record, site_learner, site_plan, site_policy, site_settings

from lada_clients.net.study_folder import SecretFolder
from lada_clients.site import review, service
from lada_clients.site.gates.files import RecordFiles, SiteFiles, check_files, file_digests
from lada_clients.site.gates.model import check_with_model
from lada_clients.site.service import Site
from lada_clients.site.settings import RecordRules, UnitRules
from lada_clients.site.training_display import TrainingDisplay
from lada_protocol.rounds.index import MessageIndex
from lada_secure.cli import main
from lada_secure.data.records import Record, write_json_lines
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import plan_inconsistencies
from lada_secure.models.loading import LanguageModel

GOOD = tuple(record(at) for at in range(4))
SECRETS = ("SENTINEL", "Mustermann", "MRN-0000")


def written(folder: Path, *lines: bytes, name: str = "records.jsonl") -> None:
    write_json_lines(folder / name, GOOD)
    with (folder / name).open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def line_of(**changes: object) -> bytes:
    fields = asdict(record(9, **changes))
    del fields["task"]
    return json.dumps(fields).encode()


def refusal(folder: Path, **changes: Any) -> str:
    policy = site_policy(**changes.pop("policy", {}))
    with pytest.raises(ParameterError) as refused:
        check_files(site_settings(folder, **changes), policy)
    assert refused.value.exit_status == 2
    return str(refused.value)


def test_all_faults_of_both_files_are_told_at_once_by_file_and_line(tmp_path: Path) -> None:
    written(tmp_path, b"{", line_of(unit="nan"), line_of(unit="U0 "))
    written(tmp_path, line_of(answer=""), name="held-out.jsonl")
    told = refusal(tmp_path, held_out=tmp_path / "held-out.jsonl").splitlines()
    shown = [line.removeprefix(f"{tmp_path}/") for line in told]
    assert [line.split(": ")[0] for line in shown] == [
        "records.jsonl:1",
        "records.jsonl:5",
        "records.jsonl:6",
        "records.jsonl:7",
        "held-out.jsonl:5",
    ]
    # Line 1 spells its unit in another way than line 7, whose record_id is that of line 6.
    assert "one unit in 2 spellings, lines 1, 7;" in shown[0]
    assert "the unit looks like a missing value in 1 record(s), lines 6;" in shown[2]
    assert "repeats the record_id of line 6" in shown[3]


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        (UnitRules(), False),
        (UnitRules(missing_like="meant"), False),
        (UnitRules(spellings="one_person", missing_like="meant"), True),
        (UnitRules(spellings="different_people", missing_like="meant"), True),
    ],
)
def test_the_policy_says_what_odd_units_are(tmp_path: Path, rules: UnitRules, passes: bool) -> None:
    written(tmp_path, line_of(unit="nan"), line_of(unit="U0 ", record_id="r10"))
    settings, policy = site_settings(tmp_path), site_policy(units=rules)
    if not passes:
        with pytest.raises(ParameterError, match="lines 1, 6"):
            check_files(settings, policy)
        return
    units = check_files(settings, policy).units(policy, max_records_per_unit=4)
    assert len(units) == (5 if rules.spellings == "one_person" else 6)


@pytest.mark.parametrize("raw", [b"", b"\n"])
def test_an_empty_file_is_refused_at_the_start(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "records.jsonl").write_bytes(raw)
    assert "holds no line" in refusal(tmp_path)


def test_held_out_records_of_people_in_training_are_a_warning_without_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, line_of(record_id="MRN-0000", unit="Mustermann"))
    write_json_lines(
        tmp_path / "held-out.jsonl",
        [
            record(20),
            record(21, record_id="MRN-0000"),
            record(22, unit="MUSTERMANN"),
            record(23, unit="Mustermann "),
        ],
    )
    policy = site_policy(units=UnitRules(spellings="one_person"))
    check_files(site_settings(tmp_path, held_out=tmp_path / "held-out.jsonl"), policy)
    assert "1 record(s) share a record_id with the training records (lines 2)" in caplog.text
    assert "2 record(s) share a unit with the training records (lines 3, 4)" in caplog.text
    assert not any(secret.casefold() in caplog.text.casefold() for secret in SECRETS)


@pytest.mark.parametrize("command", ["run", "show", "approve"])
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"Mustermann, Erika 1900-01-01": "SENTINEL"}', id="a name as a key"),
        pytest.param(b'{"record_id": "MRN-0000", SENTINEL', id="not JSON"),
        pytest.param(b'{"record_id": "SENTINEL\xff"}', id="not UTF-8"),
        pytest.param(
            json.dumps(
                {
                    "record_id": "r0",
                    "unit": "Mustermann",
                    "question": "SENTINEL",
                    "choices": ["SENTINEL", "SENTINEL"],
                    "answer": "SENTINEL\nSENTINEL",
                    "rationale": "SENTINEL",
                }
            ).encode(),
            id="in every field",
        ),
    ],
)
def test_a_bad_line_ends_the_command_before_any_connection_and_nothing_of_it_is_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    line: bytes,
) -> None:
    """No coordinator, no certificates and no roster are there: the file comes first."""
    written(tmp_path, line)
    (tmp_path / "policy.toml").write_text(
        tomli_w.dumps(
            {
                "roster_sha256": "ab" * 32,
                "population": "people",
                "target_delta": 1e-5,
                "epsilon_cap_per_study": 8.0,
                "epsilon_cap_total": 8.0,
                "max_records_per_unit": 4,
            }
        )
    )
    (tmp_path / "site.toml").write_text(
        tomli_w.dumps(
            {
                "party": "site-a",
                "coordinator": "127.0.0.1:1",
                "identity": "identity",
                "roster": "roster.json",
                "policy": "policy.toml",
                "state_dir": "state",
                "records": "records.jsonl",
                "cache_dir": "cache",
                "log": {"level": "debug"},
                "model": {"slm": "slm"},
            }
        )
    )
    arguments = [command, "--settings", str(tmp_path / "site.toml")]
    if command == "approve":
        arguments += ["study", "--by", "somebody"]
    monkeypatch.setattr(sys, "argv", ["lada", "site", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed, said = capfd.readouterr()
    assert "records.jsonl:5: " in said
    assert not any(secret in printed + said for secret in SECRETS)
    assert not (tmp_path / "state").exists()


def gate(
    folder: Path,
    records: tuple[Record, ...] = GOOD,
    *,
    held_out: tuple[Record, ...] = (),
    policy: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """The second half over records that passed the first."""
    files = SiteFiles(
        records=file_of("records.jsonl", records),
        held_out=file_of("held-out.jsonl", held_out) if held_out else None,
    )
    learner = site_learner(folder, records, **changes)
    check_with_model(learner, files, site_policy(**(policy or {})))


def test_a_site_whose_files_plan_and_model_fit_passes(tmp_path: Path) -> None:
    gate(tmp_path, held_out=(record(10), record(11, choices=("1", "2"), answer="1")))


LONG = "SENTINEL " * 9


def test_texts_that_do_not_fit_the_model_are_refused_by_file_and_line(tmp_path: Path) -> None:
    records = (*GOOD, record(4, question=LONG), record(5), record(6, rationale=LONG))
    held_out = (record(10), record(11, question="q" * 30, choices=("a", LONG), answer="a"))
    pool = (*POOL, replace(POOL[0], sample_id="s6", question=LONG))
    with pytest.raises(ParameterError) as refused:
        gate(tmp_path, records, held_out=held_out, pool=pool)
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "records.jsonl:5",
        "records.jsonl:7",
        "the coordinator's pool:7",
        "held-out.jsonl:2",
    ]
    assert lines[0].endswith("too long for the model: needs 91 tokens, at most 64")
    assert "SENTINEL" not in str(refused.value)
    gate(
        tmp_path,
        records,
        held_out=held_out,
        pool=pool,
        policy={"records": RecordRules(too_long="cut")},
    )


def test_a_text_that_the_tokenizer_fails_on_is_named_by_line_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LanguageModel.token_counts

    def token_counts(self: LanguageModel, texts: list[str]) -> list[int]:
        if any("SENTINEL" in text for text in texts):
            raise TypeError("SENTINEL is no text")
        return real(self, texts)

    monkeypatch.setattr(LanguageModel, "token_counts", token_counts)
    with pytest.raises(ParameterError) as refused:
        gate(tmp_path, (*GOOD, record(4, question="SENTINEL"), record(5)))
    assert str(refused.value) == "records.jsonl:5: the model's tokenizer cannot encode it"
    assert refused.value.__cause__ is None


def changed(part: str, **changes: object) -> dict[str, object]:
    return {part: getattr(site_plan(), part).model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("privacy", max_records_per_unit=5), "raise physical_batch_size to 5 or more"),
        (changed("paths", max_new_tokens=64), "takes 64 tokens with the prompt"),
        (changed("allocation", strategy="magic"), "allocation: allocation strategy: expected"),
        (
            changed("allocation", strategy="random", sample_value="gap"),
            "random draws at random: leave out",
        ),
        (changed("distillation", contrastive_form="magic"), "contrastive_form: expected one of"),
        (
            changed("statistics", integer_scale=1, noise_multiplier=1.0),
            "statistics: statistics noise: expected a std",
        ),
        (changed("training", noise_multiplier=5000.0), "training: noise_multiplier 5000.0"),
        (changed("privacy", epsilon_cap=0.01), "above its own cap of 0.01"),
    ],
)
def test_a_plan_that_a_mechanism_settings_or_model_refuse_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ParameterError) as refused:
        gate(tmp_path, study=site_plan(**changes))
    assert message in str(refused.value)


def test_all_faults_of_a_plan_are_told_at_once() -> None:
    plan = site_plan(
        **changed("allocation", strategy="magic"),
        **changed("distillation", contrastive_form="magic"),
        **changed("training", noise_multiplier=5000.0),
    )
    assert [one.split(":")[0] for one in plan_inconsistencies(plan)] == [
        "training",
        "distillation",
        "allocation",
    ]


def test_a_model_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    learner = site_learner(tmp_path, GOOD)
    with torch.no_grad():
        next(learner.context.lm.model.parameters()).fill_(float("nan"))
    with pytest.raises(ParameterError, match="its weights are broken"):
        gate(tmp_path, model=learner.context.lm)

    def broken(*_args: object, **_options: object) -> None:
        raise AttributeError("no such layer")

    learner = site_learner(tmp_path, GOOD)
    learner.context.lm.model.forward = broken
    with pytest.raises(ParameterError, match=r"cannot be called: AttributeError: no such layer"):
        gate(tmp_path, model=learner.context.lm)


def test_a_fault_at_the_review_posts_nothing_and_leaves_nothing_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = (*GOOD, record(4, question=LONG))
    study, place = site_plan(), site_settings(tmp_path)
    family_folder("Llama", place.slm_folder)
    book = ledger(study)
    learner = site_learner(tmp_path, records, study=study, book=book)
    before = book.entries()
    posted: list[object] = []
    monkeypatch.setattr(service, "read_public_material", lambda _: (POOL, None))
    monkeypatch.setattr(review, "plan_faults", lambda *_plan, **_options: ())
    shown = {"first_index": 0, "head_index": 1, "head_hash": "0" * 64}

    def post(kind: object, *_make: object, **_options: object) -> object:
        posted.append(kind)
        return SimpleNamespace(kind=kind, header=SimpleNamespace(body=shown))

    nobody: Any = None
    participant: Any = SimpleNamespace(
        plan=learner.plan,
        roster=None,
        index=MessageIndex(learner.plan, nobody),
        party="site-a",
        certificate="",
        post=post,
        events=SimpleNamespace(write=lambda *_args, **_fields: None),
    )

    def site(kept: tuple[Record, ...]) -> Site:
        write_json_lines(place.records, kept)
        files = SiteFiles(records=file_of("records.jsonl", kept), held_out=None)
        return Site(
            participant=participant,
            settings=place,
            policy=site_policy(),
            files=files,
            record_files=RecordFiles(
                settings=place,
                digests=file_digests(place),
                folder=tmp_path / "study",
                key=bytes(32),
            ),
            book=book,
            secrets=SecretFolder(folder=tmp_path / "secrets"),
            memory=learner.memory,
            now=lambda: datetime(2026, 2, 1, 12, tzinfo=UTC),
            outdated=lambda: False,
            display=TrainingDisplay(Console(quiet=True), epsilon_cap=0.0),
            _learner=learner,
        )

    with pytest.raises(ParameterError, match=r"records\.jsonl:5: too long"):
        site(records)._review()
    assert posted == []
    assert book.entries() == before
    site(GOOD)._review()
    assert [str(kind) for kind in posted] == ["ledger", "acceptance"]
    # The ledger had the approval already.
    assert book.entries() == before


def test_people_in_several_forms_and_placeholders_are_warnings_without_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forms = [line_of(record_id=f"a{at}", unit=one) for at, one in enumerate(("007", "7.0"))]
    same = [line_of(record_id=f"b{at}", unit="9999") for at in range(9)]
    written(tmp_path, *forms, *same)
    write_json_lines(tmp_path / "held-out.jsonl", [record(20, unit="ward/7"), record(21)])
    check_files(site_settings(tmp_path, held_out=tmp_path / "held-out.jsonl"), site_policy())
    assert "2 units may be one person with another one (as on lines 5, 6)" in caplog.text
    assert "1 unit(s) look like a placeholder" in caplog.text
    assert "1 record(s) share a unit, but for leading zeros or what stands" in caplog.text
    assert "007" not in caplog.text
    assert "9999" not in caplog.text
