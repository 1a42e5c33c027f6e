"""`lada init` as people meet it: a folder whole or not at all, and a roster that was compared."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import select
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from checked_run import tree
from typer.testing import CliRunner

from lada_clients.auditor.initial_settings import TEMPLATES as AUDITOR
from lada_clients.ca import commands as ca_commands
from lada_clients.ca.invitations import invite
from lada_clients.setup import commands, joining, party_folder, questions
from lada_clients.site.initial_settings import TEMPLATES as SITE
from lada_lab.mock.preparation import lada_command
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.enrolment import parse_bundle, roster_fingerprint
from lada_protocol.kinds import Role
from lada_protocol.party_files import load_credentials, read_roster
from lada_secure.errors import LadaError, ParameterError
from lada_server.initial_settings import TEMPLATES as COORDINATOR

SITES = ("a", "b", "c")
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    """Templates by their code, whatever version is installed; a party's files beside it."""
    roles = {one.role: one for one in (SITE, AUDITOR, COORDINATOR)}
    for module in (party_folder, joining):
        monkeypatch.setattr(module, "known_templates", lambda: roles)
    monkeypatch.delenv("LADA_KEY_PASSPHRASE", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("records.jsonl", "pool.jsonl"):
        Path(name).write_text("{}\n")
    Path("model").mkdir()


def run(*words, app=commands.app):
    """What a command has found; an error of ours comes out as it is."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, LadaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def begin_hub(*more):
    words = ["coordinator", "hub", "--name", "hub", "--address", "hub.example.org:7443"]
    words += ["--pool", "pool.jsonl", "--llm", "model", "--auditor", "eye", "--json"]
    sites = [word for one in SITES for word in ("--site", one)]
    return json.loads(run(*words, *sites, *more))


def begin_site(invitation, folder="site", *more):
    words = ("site", folder, "--invite", invitation, "--records", "records.jsonl")
    return run(*words, "--model", "model", *more)


@pytest.fixture
def bundle():
    """All parties have begun and were admitted; the bundle, with its fingerprint."""
    invitations = begin_hub()["invitations"]
    run("auditor", "eye", "--invite", invitations["eye"])
    for one in SITES:
        begin_site(invitations[one], one)
    requests = [f"{one}/request-{one}.json" for one in ("eye", *SITES)]
    return json.loads(run("admit", "hub/ca", *requests, "--json", app=ca_commands.app))


def join(bundle, folder, fingerprint=None):
    return run(
        "join", folder, bundle["bundle"], "--fingerprint", fingerprint or bundle["fingerprint"]
    )


def test_everybody_joins_and_has_the_roster_pinned(bundle):
    for folder in ("hub", "eye", *SITES):
        assert f"lada check {folder}/" in join(bundle, folder)
        roster = read_roster(Path(folder, "roster.json"), pinned=bundle["roster_sha256"])
        load_credentials(Path(folder, "identity"), expected_id=folder).check_roster(roster)
    assert f'"{bundle["roster_sha256"]}"' in Path("a/policy.toml").read_text()
    assert f'"{bundle["roster_sha256"]}"' in Path("eye/auditor.toml").read_text()


def test_joining_changes_the_pin_and_no_other_line(bundle):
    policy = Path("a/policy.toml")
    edited = policy.read_text().replace("epsilon_cap_total = 8.0", "epsilon_cap_total = 5  # ours")
    policy.write_text(edited)
    join(bundle, "a")
    before, after = edited.splitlines(), policy.read_text().splitlines()
    changed = [one for one, other in zip(before, after, strict=True) if one != other]
    assert changed == [f'roster_sha256 = "{"0" * 64}"']
    # Once more changes nothing: an interrupted one is mended by the same command.
    now = tree(Path("a"))
    join(bundle, "a")
    assert {name: one[1] for name, one in tree(Path("a")).items()} == {
        name: one[1] for name, one in now.items()
    }


def test_joining_leaves_a_file_closed_that_was_closed_to_others(bundle):
    policy = Path("a/policy.toml")
    policy.chmod(0o600)
    join(bundle, "a")
    assert policy.stat().st_mode & 0o777 == 0o600


def test_keys_are_the_owners_alone_and_none_is_in_what_is_sent(bundle):
    for path in Path().glob("*/identity/*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    for folder in ("hub", "a"):
        assert Path(folder).stat().st_mode & 0o077 == 0
    for sent in (Path(bundle["bundle"]), *Path().glob("*/request-*.json")):
        assert b"PRIVATE" not in sent.read_bytes()


def read_wrong(fingerprint: str) -> str:
    """With another first digit."""
    return str((int(fingerprint[0]) + 1) % 10) + fingerprint[1:]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda b: join(b, "a", read_wrong(b["fingerprint"])), "group 1 differs"),
        (lambda b: run("join", "a", b["bundle"]), "--fingerprint: missing. Here the roster of"),
        (lambda b: join(b, "nowhere"), "holds none of auditor.toml, server.toml, site.toml"),
        (lambda b: Path("a/site.toml").unlink() or join(b, "a"), "If it is half of one"),
        (lambda b: Path("a/request-a.json").unlink() or join(b, "a"), "cannot read the request"),
        (lambda b: Path("a/identity/sign.key").unlink() or join(b, "a"), "sign.key: cannot be"),
        (
            lambda b: Path("b/identity/tls.key").replace("a/identity/tls.key") and join(b, "a"),
            "tls.key does not belong to the certificate",
        ),
        (
            lambda b: Path("eye/auditor.toml").replace("a/auditor.toml") and join(b, "a"),
            "holds auditor.toml, site.toml, of several parties",
        ),
        (
            lambda b: Path("b/request-b.json").replace("a/request-a.json") and join(b, "a"),
            "its request of site b",
        ),
        (
            lambda b: Path("a/policy.toml").write_text("x = 1") and join(b, "a"),
            "expected one line roster_sha256",
        ),
        (lambda b: Path(b["bundle"]).write_text("{}") and join(b, "a"), "bundle, ca: Field req"),
        (lambda b: run("join", "a", "absent.json"), "absent.json: there is no such bundle"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(bundle, spoil, told):
    with pytest.raises(ParameterError, match=told.replace(".", r"\.")):
        spoil(bundle)
    assert not Path("a/roster.json").exists()
    assert not Path("a/identity/tls.crt").exists()


def test_another_studys_bundle_is_refused(bundle):
    Path("hub").rename("first")
    other = begin_hub()["invitations"]
    run("auditor", "eye-2", "--invite", other["eye"])
    for one in SITES:
        begin_site(other[one], f"{one}-2")
    requests = ["eye-2/request-eye.json", *(f"{one}-2/request-{one}.json" for one in SITES)]
    found = json.loads(run("admit", "hub/ca", *requests, "--json", app=ca_commands.app))
    with pytest.raises(ParameterError, match="take the bundle of this study"):
        join(found, "a")
    assert parse_bundle(Path(found["bundle"]).read_bytes()).roster.hash != bundle["roster_sha256"]
    assert roster_fingerprint(found["roster_sha256"]) == found["fingerprint"]


def test_encrypted_keys_are_joined_with_their_passphrase(monkeypatch):
    Path("pass.txt").write_text("correct horse battery staple")
    made = begin_hub("--passphrase-file", "pass.txt")
    for path in (*Path("hub/identity").glob("*.key"), Path("hub/ca/ca.key")):
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert (
        f'passphrase_file = "{Path("pass.txt").absolute()}"' in Path("hub/server.toml").read_text()
    )
    begin_site(made["invitations"]["a"])
    words = ("admit", "hub/ca", "site/request-a.json")
    with pytest.raises(ParameterError, match="is encrypted and no passphrase was given"):
        run(*words, app=ca_commands.app)
    run(*words, "--passphrase-file", "pass.txt", app=ca_commands.app)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["site", "new"], "--invite, --records, --model: missing"),
        (["auditor", "new"], "--invite: missing"),
        (
            ["coordinator", "new"],
            "--name, --address, --auditor, --site, --pool, --llm: missing",
        ),
        (["site", "model"], "is there already; name a new folder"),
        (["site", "pool.jsonl"], "is there already; name a new folder"),
        (["site", "new", "--invite", "AUDITOR"], "for auditor eye, and this is `lada init site`"),
        (["site", "new", "--invite", "LATE"], "ended at .* ask whoever runs the CA"),
        (["site", "new", "--invite", "SITE", "--records", "x"], "--records: x: no such file"),
        (["site", "new", "--invite", "SITE", "--model", "x"], "--model: x: no such folder"),
        (["site", "new", "--invite", "SITE", "--epsilon-total", "nan"], "a number above 0"),
        (["site", "new", "--invite", "SITE", "--coordinator", "hub"], "expected host:port"),
        (["site", "new", "--invite", "SITE", "--population", "a b"], "the new policy.toml: popul"),
        (["coordinator", "new", "--site", "a", "--site", "b"], "three sites or more, got 2"),
        (["coordinator", "new", "--site", "hub"], "three sites or more"),
        (["coordinator", "new", "--study-id", "a b"], "the new study.toml: study_id: "),
        (["coordinator", "new", "--address", "hub"], "--address: address 'hub': expected host"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing_behind(words, told, tmp_path):
    made = begin_hub()["invitations"]
    until = datetime.now(UTC) - timedelta(days=30)
    late = invite(
        Path("hub/ca"),
        [PartyName(role=Role.SITE, id="late")],
        coordinator=None,
        days=1,
        now=until,
        passphrase=None,
    )["late"]
    lines = {"AUDITOR": made["eye"], "SITE": made["a"], "LATE": late.to_text()}
    words = [lines.get(one, one) for one in words]
    if words[0] == "site" and "--invite" in words:
        words += [] if "--records" in words else ["--records", "records.jsonl"]
        words += [] if "--model" in words else ["--model", "model"]
    if words[0] == "coordinator" and len(words) > 2:
        more = {"--name": "hub", "--address": "h:1", "--pool": "pool.jsonl", "--llm": "model"}
        more |= {"--auditor": "eye"}
        words += [word for key, value in more.items() if key not in words for word in (key, value)]
        if "--site" not in words:
            words += [word for one in SITES for word in ("--site", one)]
    before = tree(tmp_path)
    with pytest.raises(ParameterError, match=told):
        run(*words)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("role", "option", "known"),
    [
        ("site", "--approval", ["policy", "person"]),
        ("coordinator", "--answer-form", ["cloze", "listed", "reasoned"]),
        ("coordinator", "--embedder", ["minilm", "hashed-ngrams"]),
    ],
)
def test_a_choice_that_does_not_exist_is_answered_by_those_that_do(role, option, known):
    done = CliRunner().invoke(commands.app, [role, "new", option, "persn"])
    assert done.exit_code == 2
    assert all(one in done.output for one in [option, "persn", *known])
    assert not Path("new").exists()


def test_what_a_killed_command_had_begun_is_swept_by_the_next(tmp_path):
    made = begin_hub()["invitations"]
    # No process has this number: it is above the kernel's largest.
    left = tmp_path / ".site.9999999"
    left.mkdir()
    (left / "tls.key").write_text("x")
    ours = tmp_path / f".site.{os.getppid()}"
    ours.mkdir()
    begin_site(made["a"])
    assert not left.exists()
    assert ours.exists()


def test_a_coordinator_can_be_invited_by_somebody_elses_ca():
    run("init", "ca", app=ca_commands.app)
    words = ["invite", "ca", "--coordinator", "hub", "--auditor", "eye", "--json"]
    words += ["--address", "hub.example.org:7443"]
    made = json.loads(run(*words, app=ca_commands.app))["invitations"]
    run(
        "coordinator", "hub", "--invite", made["hub"], "--pool", "pool.jsonl", "--llm", "model"
    )  # fmt: skip
    assert not Path("hub/ca").exists()
    assert Path("hub/request-hub.json").exists()
    assert 'listen = "0.0.0.0:7443"' in Path("hub/server.toml").read_text()


QUESTIONS = {
    "site": [
        ("Invitation", "INVITATION"),
        ("Private records", "records.jsonl"),
        ("Private test records", ""),
        ("Folder of this site's model", "model"),
        ("Name of these people", ""),
        ("epsilon of one study", "2"),
        ("epsilon over all studies", ""),
    ],
    "coordinator": [
        ("Id of the coordinator", "hub-2"),
        ("host:port", "hub.example.org:7443"),
        ("Id of the auditor", "eye"),
        ("Ids of the sites", "a b c"),
        ("Public questions", "pool.jsonl"),
        ("Folder of the large model", "model"),
        ("Title", ""),
    ],
    "join": [("fingerprint, as another party", "00000 00000 00000 00000 00000 00000")],
}


def at_terminal(words, answers, *, then):
    """Run a command at a terminal: answer what is asked for, then send `then` at the next question.

    Python may swallow a Ctrl-C that comes while a finalizer runs, so `then` is sent again every
    second, as a person would press again.

    Returns: exit status and all that was shown.
    """
    child, terminal = pty.fork()
    if child == 0:
        command = lada_command(*words)
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "400"}
        os.execvpe(command[0], command, environment)  # noqa: S606
    shown, until_s = "", time.monotonic() + PATIENCE_S
    seen, sent_s = 0, math.inf
    waiting = [*answers, *([then] if then else [])]
    while time.monotonic() < until_s:
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                shown += os.read(terminal, 65536).decode()
            except OSError:
                break
        if waiting and waiting[0][0] in shown[seen:]:
            seen = len(shown)
            os.write(terminal, waiting.pop(0)[1].encode())
            sent_s = time.monotonic()
        if then and not waiting and time.monotonic() > sent_s + 1.0:
            with contextlib.suppress(OSError):
                os.write(terminal, then[1].encode())
            sent_s = time.monotonic()
    else:
        os.kill(child, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


@pytest.mark.parametrize(
    ("role", "place"),
    [(role, place) for role, asked in QUESTIONS.items() for place in range(len(asked))],
)
def test_being_stopped_at_every_question_leaves_nothing_behind(
    role, place, bundle, tmp_path, monkeypatch
):
    asked = iter(_typed(role)[:place])

    def prompt(question, **_):
        expected, text = next(asked, (None, ""))
        if expected is None:
            raise typer.Abort
        assert expected in question
        return text.strip()

    monkeypatch.setattr(questions, "has_terminal", lambda: True)
    monkeypatch.setattr(questions.typer, "prompt", prompt)
    before = tree(tmp_path)
    words = [role, *(["a", bundle["bundle"]] if role == "join" else ["new"])]
    done = CliRunner().invoke(commands.app, words)
    assert done.exit_code == 1, done.output
    assert "stopped; nothing was written" in done.stderr
    assert tree(tmp_path) == before
    assert list(asked) == []


def test_ctrl_c_at_a_real_terminal_leaves_nothing_behind(tmp_path):
    begin_hub()
    asked = _typed("site")
    before = tree(tmp_path)
    words = ["init", "site", "new"]
    status, shown = at_terminal(words, asked[:3], then=(asked[3][0], "\x03"))
    assert status == 1, shown
    assert "stopped; nothing was written" in shown
    assert "Traceback" not in shown
    assert tree(tmp_path) == before


def test_questions_that_are_answered_make_the_folder():
    begin_hub()
    asked = _typed("site")
    # A wrong answer is told, and asked for again.
    answers = [asked[0], (asked[1][0], "no such thing\r"), *asked[1:]]
    status, shown = at_terminal(["init", "site", "new"], answers, then=None)
    assert status == 0, shown
    assert "no such thing: no such file" in shown
    assert "epsilon_cap_per_study = 2.0" in Path("new/policy.toml").read_text()
    assert "epsilon_cap_total = 4.0" in Path("new/policy.toml").read_text()
    assert '# held_out = "held-out.jsonl"' in Path("new/site.toml").read_text()


def test_a_fingerprint_that_was_mistyped_is_asked_for_again(bundle, tmp_path):
    question = QUESTIONS["join"][0][0]
    answers = [read_wrong(bundle["fingerprint"]), "12345", bundle["fingerprint"]]
    status, shown = at_terminal(
        ["init", "join", "a", bundle["bundle"]],
        [(question, f"{one}\r") for one in answers],
        then=None,
    )
    assert status == 0, shown
    assert "group 1 differs" in shown
    assert "expected 6 groups of 5 digits, got '12345'" in shown
    assert "site a is ready" in shown


def _typed(role):
    """Answers as they are typed."""
    line = ""
    if role == "site":
        party = [PartyName(role=Role.SITE, id="late-comer")]
        made = invite(
            Path("hub/ca"), party, coordinator=None, days=1, now=datetime.now(UTC), passphrase=None
        )
        line = made["late-comer"].to_text()
    return [
        (question, f"{line or text}\r" if text == "INVITATION" else f"{text}\r")
        for question, text in QUESTIONS[role]
    ]
