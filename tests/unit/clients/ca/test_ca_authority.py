"""`lada ca`: the folders it writes, and what it refuses to write."""

import stat
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from lada_clients.ca import authority
from lada_clients.ca.commands import app
from lada_clients.ca.enrolment import write_new_files
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Role
from lada_protocol.party_files import load_credentials
from lada_secure.errors import ParameterError, TransportError

SITE = PartyName(role=Role.SITE, id="new")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_three_commands_make_a_study_from_nothing(tmp_path):
    assert run("init", tmp_path / "ca", "--name", "My study").exit_code == 0
    for role, party in (("coordinator", "hub"), ("auditor", "eye"), ("site", "a-1")):
        made = run(
            *("issue", tmp_path / "ca", "--role", role, "--id", party, "--out", tmp_path / party),
            *("--host", "localhost", "--host", "127.0.0.1"),
        )
        assert made.exit_code == 0, made.output
    parties = [word for party in ("hub", "eye", "a-1") for word in ("--party", tmp_path / party)]
    made = run("roster", tmp_path / "ca", "--out", tmp_path / "roster.json", *parties)
    roster = parse_roster((tmp_path / "roster.json").read_bytes())
    assert f"roster_sha256 = {roster.hash}" in made.output
    for party in ("hub", "eye", "a-1"):
        load_credentials(tmp_path / party, expected_id=party).check_roster(roster)


def test_keys_are_readable_by_their_owner_only(study):
    keys = [study.folder / "ca" / "ca.key"]
    keys += [study.identity("bank") / name for name in ("tls.key", "sign.key")]
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def test_an_identity_folder_is_never_overwritten(study):
    before = {path: path.read_bytes() for path in study.identity("bank").iterdir()}
    with pytest.raises(ParameterError, match="exist already"):
        authority.issue_party(
            study.folder / "ca",
            party=PartyName(role=Role.SITE, id="bank"),
            hosts=(),
            days=1,
            out=study.identity("bank"),
            now=study.now,
        )
    assert {path: path.read_bytes() for path in study.identity("bank").iterdir()} == before


def test_a_ca_is_never_overwritten(study):
    with pytest.raises(ParameterError, match="exist already"):
        authority.init_ca(study.folder / "ca", name="x", days=1, now=study.now)


def test_a_failed_write_leaves_no_file_behind(tmp_path):
    with pytest.raises(TransportError, match="cannot write"):
        write_new_files(tmp_path / "out", public={"a": b"1", "missing/b": b"2"}, secret={})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("days", [0, 31, 36_501])
def test_a_period_that_is_empty_or_passes_the_cas_own_is_refused(study, tmp_path, days):
    with pytest.raises(ParameterError):
        authority.issue_party(
            study.folder / "ca", party=SITE, hosts=(), days=days, out=tmp_path, now=study.now
        )
    assert list(tmp_path.iterdir()) == []


def test_a_roster_is_made_of_this_cas_valid_certificates_only(study, make_study, tmp_path):
    other = make_study()
    parties = [study.identity(one.id) for one in study.roster.parties]
    cases = (
        ([*parties, other.identity("outsider")], study.now, "not issued by the study CA"),
        (parties, study.now + timedelta(days=21), "valid from"),
        ([*parties, tmp_path / "nowhere"], study.now, "cannot be read"),
        (parties[:1], study.now, "roster: expected"),
    )
    for folders, now, text in cases:
        with pytest.raises(ParameterError, match=text):
            authority.make_roster(
                study.folder / "ca", parties=folders, out=tmp_path / "roster.json", now=now
            )
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_parties_in_one_folder_are_refused(study, tmp_path):
    for name in ("ca.crt", "tls.crt", "tls.key", "sign.crt", "sign.key"):
        source = "hospital-a" if name.startswith("sign") else "bank"
        (tmp_path / name).write_bytes((study.identity(source) / name).read_bytes())
    with pytest.raises(ParameterError, match="certificate names lada:site:hospital-a"):
        load_credentials(tmp_path)


def test_a_key_of_another_certificate_is_refused(study, tmp_path):
    for name in ("ca.crt", "tls.crt", "tls.key", "sign.crt", "sign.key"):
        source = "hospital-a" if name == "sign.key" else "bank"
        (tmp_path / name).write_bytes((study.identity(source) / name).read_bytes())
    with pytest.raises(ParameterError, match=r"sign\.key does not belong"):
        load_credentials(tmp_path)


def test_a_damaged_key_is_refused_without_showing_it(study, tmp_path):
    for path in study.identity("bank").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = (tmp_path / "tls.key").read_bytes().replace(b"M", b"!", 1)
    (tmp_path / "tls.key").write_bytes(damaged)
    with pytest.raises(ParameterError, match=r"tls\.key: expected") as refused:
        load_credentials(tmp_path)
    assert damaged.decode().splitlines()[1] not in str(refused.value)


def test_credentials_of_an_unlisted_or_reissued_party_do_not_fit_the_roster(study, make_study):
    with pytest.raises(ParameterError, match="not in the roster"):
        study.credentials("outsider").check_roster(study.roster)
    with pytest.raises(ParameterError, match="use the identity folder"):
        make_study().credentials("bank").check_roster(study.roster)


def test_credentials_show_no_key(study):
    loaded = study.credentials("bank")
    assert "PRIVATE" not in repr(loaded)
    assert "_key" not in repr(loaded)
    with pytest.raises(TypeError):
        loaded.__reduce__()
