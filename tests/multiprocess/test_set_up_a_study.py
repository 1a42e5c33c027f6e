"""Five parties from nothing, by the commands of docs/set-up-a-study.md and nothing else.

Each party has a folder of its own, which stands for its machine: what goes from one to another is
copied by name and counted. Where the tests run as root, and others may use this interpreter, each
party is a user of its own as well, whose folder nobody else can enter. The second test goes on to a
finished study.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.preparation import child_environment, free_port, lada_command
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.named_models import make_model
from lada_secure.data.records import write_json_lines

PAGE = (Path(__file__).parents[2] / "docs" / "set-up-a-study.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = [line.partition("$ ") for block in BLOCKS for line in block.splitlines()]
SITES = ("hospital-a", "hospital-b", "bank")
OTHERS = ("auditor", *SITES)
FINGERPRINT = "46643 34748 74415 75499 15828 84013"
# What the page leaves to its defaults, and small models on a few shared cores need otherwise.
FITTED = {
    "lada init coordinator": ["--rounds", "1", "--threads", "1"],
    "lada init site": ["--threads", "1"],
}


# Nobody's, on any usual machine.
FIRST_UID = 61_200


def others_can_run():
    """Whether this process may become another user, and that one may run the program."""
    asked = lada_command("--help")
    try:
        tried = subprocess.run(
            asked, user=FIRST_UID, group=FIRST_UID, extra_groups=(), capture_output=True
        )
    except PermissionError:
        return False
    return tried.returncode == 0


class Walk:
    """The parties' machines. commands, copied: what was typed and carried, by party.

    uids: the user that each party is; none where the tests may not become others.
    """

    def __init__(self, root):
        self.root = root
        self.began_s = time.monotonic()
        self.commands = {party: [] for party in ("hub", *OTHERS)}
        self.copied = {party: [] for party in ("hub", *OTHERS)}
        self.uids = (
            {party: FIRST_UID + place for place, party in enumerate(self.commands)}
            if others_can_run()
            else {}
        )
        self.address = f"localhost:{free_port(0)}"
        self.told = {}
        self._data()

    def _data(self):
        cache = default_cache_dir(os.environ)
        data = build_federation("tiny", sites=3, seed=7)
        for party in self.commands:
            (self.root / party / "models").mkdir(parents=True)
        make_model("tiny-llm-3-7", cache_dir=cache)
        make_model("tiny-slm-3-7", cache_dir=cache)
        shutil.copytree(cache / "tiny-llm-3-7", self.root / "hub" / "models" / "llm")
        write_json_lines(self.root / "hub" / "pool.jsonl", data.pool)
        for party, site in zip(SITES, data.sites.values(), strict=True):
            shutil.copytree(cache / "tiny-slm-3-7", self.root / party / "models" / "slm")
            write_json_lines(self.root / party / "records.jsonl", site.train)
            write_json_lines(self.root / party / "held-out.jsonl", site.held_out)
        for party in self.commands:
            self.hand_over(party)

    def hand_over(self, party):
        """Everything in a party's folder is its user's."""
        (self.root / party).chmod(0o700)
        for path in (self.root / party, *(self.root / party).rglob("*")):
            if self.uids:
                os.chown(path, self.uids[party], self.uids[party])

    def words(self, party, line):
        """What a party types for a line of the page."""
        line = line.replace("hub.example.org:7443", self.address)
        line = line.replace(FINGERPRINT, self.told.get("fingerprint", ""))
        line = line.replace("INVITATION", self.told.get("invitations", {}).get(party, ""))
        extra = next((more for start, more in FITTED.items() if line.startswith(start)), [])
        return [*shlex.split(line)[1:], *extra]

    def type(self, party, line, *more):
        """Run a command at a party's machine."""
        self.commands[party].append(line)
        uid = self.uids.get(party)
        return subprocess.Popen(
            lada_command(*self.words(party, line), *more),
            cwd=self.root / party,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
            env=child_environment(os.environ) | {"HOME": str(self.root / party)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def done(self, party, line, *more, allowed=(0,)):
        """Likewise, to its end; its standard output."""
        running = self.type(party, line, *more)
        said, wrong = running.communicate(timeout=120)
        assert running.returncode in allowed, f"{party}: {line}\n{said}\n{wrong}"
        return said

    def copy(self, source, target, name):
        """Carry a file from one machine to another."""
        for party in (source.parts[0], target):
            if party != "hub":
                self.copied[party].append(name)
        assert b"PRIVATE KEY" not in (self.root / source).read_bytes()
        shutil.copy(self.root / source, self.root / target / name)
        self.hand_over(target)

    def of(self, *start):
        """Lines of the page that begin so, by party; sites but the first do as the first."""
        found = {}
        for party, dollar, line in LINES:
            if not dollar or not line.startswith(start):
                continue
            if party != SITES[0]:
                found.setdefault(party, []).append(line)
                continue
            for site in SITES:
                found.setdefault(site, []).append(line.replace(SITES[0], site))
        return found


@pytest.fixture(scope="module")
def walk():
    """Everybody has joined."""
    # Not pytest's own folder, which only its own user can enter.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o711)
        yield everybody_joined(Walk(Path(root)))


def everybody_joined(walk):
    begins = walk.of("lada init coordinator", "lada init auditor", "lada init site")
    walk.told = json.loads(walk.done("hub", *begins.pop("hub"), "--json"))
    for party, (line,) in begins.items():
        walk.done(party, line)
        request = f"request-{party}.json"
        walk.copy(Path(party, party, request), "hub", request)
    (admit,) = walk.of("lada ca admit")["hub"]
    walk.told |= json.loads(walk.done("hub", admit, "--json"))
    for party in OTHERS:
        walk.copy(Path("hub", "hub", "ca", "bundle.json"), party, "bundle.json")
    for party, (line,) in walk.of("lada init join").items():
        walk.done(party, line)
    return walk


def test_a_study_is_set_up_in_four_commands_and_two_files_a_party(walk):
    begun = {party: len(lines) for party, lines in walk.of("lada ").items()}
    assert begun.keys() == walk.commands.keys()
    assert max(begun.values()) <= 4, begun
    assert {party: len(names) for party, names in walk.copied.items()} == {
        "hub": 0,
        **dict.fromkeys(OTHERS, 2),
    }
    keys = [path.read_bytes() for path in walk.root.glob("*/*/identity/*.key")]
    assert len(keys) == len(set(keys)) == 10
    assert len(list(walk.root.rglob("ca.key"))) == 1
    for party in SITES:
        policy = (walk.root / party / party / "policy.toml").read_text()
        assert f'roster_sha256 = "{walk.told["roster_sha256"]}"' in policy


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_study_runs_and_verifies_without_a_line_edited(walk):
    settings = {path: path.read_bytes() for path in walk.root.glob("*/*/*.toml") if path.is_file()}
    assert len(settings) == 9
    for party, (line,) in walk.of("lada check").items():
        # The tiny model does not read the built-in questions, and is warned of.
        walk.done(party, line, allowed=(0, 1))
    running = {
        party: walk.type(party, line)
        for party, (line,) in walk.of(
            "lada server run", "lada auditor run", "lada site run"
        ).items()
    }
    told = {}
    try:
        for party, one in running.items():
            told[party] = one.communicate(timeout=1500)
        assert {one.returncode for one in running.values()} == {0}, told
    finally:
        for one in running.values():
            one.kill()
    if walk.uids:
        owned = {path.stat().st_uid for path in (walk.root / "bank").rglob("*")}
        assert owned == {walk.uids["bank"]}
    (verify,) = walk.of("lada audit verify")["auditor"]
    assert "epsilon" in walk.done("auditor", verify)
    took_s = time.monotonic() - walk.began_s

    typed = {party: len(lines) for party, lines in walk.commands.items()}
    edited = sum(path.read_bytes() != before for path, before in settings.items())
    carried = {party: len(names) for party, names in walk.copied.items()}
    counted = f"commands {typed}, lines edited {edited}, files copied {carried}"
    print(f"{len(walk.uids)} users, {counted}; {took_s:.0f} s")
    assert (max(typed.values()), edited, max(carried.values())) == (4, 0, 2)
