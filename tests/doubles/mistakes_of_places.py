# ruff: noqa: E501
"""Mistakes of disks, ledgers, clocks, ports and the network; see `mistakes`."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mistaken_study import PORT, Study
from mistakes import (
    AUDITOR,
    OF_AUDITOR,
    OF_HUB,
    OF_SITE,
    POLICY,
    SERVER,
    SITE,
    Mistake,
    Spoil,
    keys,
)

from lada_clients.site.settings import read_site_settings
from lada_secure.storage.state_folder import shared_state_folder

# Nothing listens there.
_DEAD_PROXY = "http://127.0.0.1:9"
_OWNER = '{"party":"bank","role":"site","version":1}'
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def _failing(module: Any, name: str, number: int) -> Spoil:
    """A system call that fails as this disk's would."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return lambda study: study.patch.setattr(module, name, fail)


def _not_ours(study: Study) -> None:
    # Modes stop nobody who runs the tests as root.
    real = os.access

    def access(path: Any, mode: int, **more: Any) -> bool:
        return real(path, mode, **more) and not (
            mode & os.W_OK and study.root in Path(path).parents
        )

    study.patch.setattr(os, "access", access)


def _state_of_another(study: Study) -> None:
    study.path("hospital-a/state").mkdir()
    study.path("hospital-a/state/owner.json").write_text(_OWNER)


def _in_use(study: Study) -> None:
    # As `lada site run` does: other studies of this site may run beside it.
    settings, _ = read_site_settings(study.path("hospital-a/site.toml"))
    folder, work = settings.state_dir, settings.work
    held = shared_state_folder(folder, party="hospital-a", role="site", work=work)
    study.ends.enter_context(held)


def _damaged(study: Study) -> None:
    path = study.path("hospital-a/state/ledger-hospital-a.people.sqlite")
    path.parent.mkdir()
    path.write_bytes(b"no ledger" * 1000)


def _renamed_file(study: Study) -> None:
    study.ledger().close()
    study.toml(POLICY, population="hospital-a.patients")
    folder = study.path("hospital-a/state")
    (folder / "ledger-hospital-a.people.sqlite").rename(
        folder / "ledger-hospital-a.patients.sqlite"
    )


def _set_back(study: Study) -> None:
    study.ledger(ahead_s=3 * 3600).close()


def _proxy(dialled: str, *, no_proxy: str = "", proxy: str = _DEAD_PROXY) -> Spoil:
    def spoil(study: Study) -> None:
        study.patch.setenv("https_proxy", proxy)
        study.patch.setenv("no_proxy", no_proxy)
        study.toml(SITE, coordinator=dialled)

    return spoil


def _forbidding(study: Study) -> None:
    _proxy("hub.example.org:7443", proxy=f"http://127.0.0.1:{study.answering(FORBIDDEN)}")(study)


def _direct(dialled: str, no_proxy: str) -> Spoil:
    """Dialled directly: refused by the host itself, where nobody listens."""

    def spoil(study: Study) -> None:
        _proxy(dialled, no_proxy=no_proxy)(study)
        _failing(socket, "create_connection", errno.ECONNREFUSED)(study)

    return spoil


def _unknown_host(study: Study) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    study.toml(SITE, coordinator="hbu.example.org:7443")
    study.patch.setattr(socket, "getaddrinfo", fail)


def _port_taken(study: Study) -> None:
    taken = study.ends.enter_context(socket.socket())
    taken.bind(("0.0.0.0", PORT))  # noqa: S104
    taken.listen(1)


DISKS = (
    Mistake(
        name="another party's state folder",
        command=OF_SITE,
        check="state",
        says="is the state of site bank, the settings are those of site hospital-a",
        spoil=_state_of_another,
    ),
    Mistake(
        name="a file in place of the state folder",
        command=OF_SITE,
        check="state",
        says="is no folder; name another place",
        spoil=lambda study: study.path("hospital-a/state").write_text(""),
    ),
    Mistake(
        name="a folder that this user cannot write to",
        command=OF_SITE,
        check="state",
        says="cannot be written to by this user; name another place, or let it",
        spoil=_not_ours,
    ),
    Mistake(
        name="the disk is full",
        command=OF_SITE,
        check="disk",
        says="no room is left (No space left on device); free some, or name another place",
        spoil=_failing(os, "pwrite", errno.ENOSPC),
    ),
    Mistake(
        name="the quota is used up",
        command=OF_AUDITOR,
        check="disk",
        says="no room is left (Disk quota exceeded)",
        spoil=_failing(os, "pwrite", errno.EDQUOT),
    ),
    Mistake(
        name="the disk is read-only",
        command=OF_SITE,
        check="disk",
        says="it is read-only (Read-only file system); mount it for writing, or name another place",
        spoil=_failing(os, "pwrite", errno.EROFS),
    ),
    Mistake(
        name="a network share without locks",
        command=OF_SITE,
        check="disk",
        says="files there cannot be locked (No locks available); name a folder on a file system that has locks",
        spoil=_failing(fcntl, "flock", errno.ENOLCK),
    ),
    Mistake(
        name="a process of this party runs already",
        command=OF_SITE,
        check="disk",
        says="a process of this party works in it now; a second one would be refused",
        level="warning",
        spoil=_in_use,
    ),
    Mistake(
        name="it is started all the same",
        command="lada site run --settings hospital-a/site.toml",
        says="is in use by another process of this party; stop it first",
        spoil=_in_use,
    ),
    Mistake(
        name="the population is renamed between studies",
        command=OF_SITE,
        check="ledger",
        says="there is none of the population hospital-a.patients, and one of hospital-a.people; a study would begin a new ledger with the whole budget of epsilon 8",
        level="warning",
        spoil=lambda study: (
            study.ledger().close(),
            study.toml(POLICY, population="hospital-a.patients"),
        ),
    ),
    Mistake(
        name="the ledger's file is renamed with the population",
        command=OF_SITE,
        check="ledger",
        says="it is of the population hospital-a.people, its name says hospital-a.patients; put back",
        spoil=_renamed_file,
    ),
    Mistake(
        name="another site's ledger",
        command=OF_SITE,
        check="ledger",
        says="it is of the site bank, these are the settings of hospital-a; put back this site's own file",
        spoil=lambda study: study.ledger(site="bank").close(),
    ),
    Mistake(
        name="a new key before `lada site renew-key`",
        command=OF_SITE,
        check="ledger",
        says="it goes on under another key than sign.key; `lada site renew-key` continues it",
        spoil=lambda study: study.ledger(key=Ed25519PrivateKey.generate()).close(),
    ),
    Mistake(
        name="the ledger is damaged",
        command=OF_SITE,
        check="ledger",
        says="it is damaged or not a ledger at all",
        spoil=_damaged,
    ),
    Mistake(
        name="the clock was set back since the last study",
        command=OF_SITE,
        check="ledger",
        says="the clock was set back by",
        spoil=_set_back,
    ),
    Mistake(
        name="a database that is none of SQLite and PostgreSQL",
        command=OF_HUB,
        check="database",
        says="database: expected sqlite or postgresql, got 'mysql'",
        spoil=keys(SERVER, database="mysql://lada@db.example.org/lada"),
    ),
)

NETWORKS = (
    Mistake(
        name="an address without its port",
        command=OF_SITE,
        check="settings",
        says="coordinator: address 'hub.example.org': expected host:port",
        spoil=keys(SITE, coordinator="hub.example.org"),
    ),
    Mistake(
        name="an address as a URL",
        command=OF_AUDITOR,
        check="settings",
        says="coordinator: address 'https://hub.example.org:7443': expected host:port",
        spoil=keys(AUDITOR, coordinator="https://hub.example.org:7443"),
    ),
    Mistake(
        name="a host that is unknown",
        command=OF_SITE,
        check="coordinator",
        says="coordinator at hbu.example.org:7443: the host name is unknown; check the address",
        spoil=_unknown_host,
    ),
    Mistake(
        name="something else listens at the address",
        command=OF_SITE,
        check="coordinator",
        says="does not speak TLS 1.3 as this study's coordinator does",
        spoil=lambda study: study.toml(
            SITE, coordinator=f"localhost:{study.answering(PLAIN_HTTP)}"
        ),
    ),
    Mistake(
        name="a proxy that is not there",
        command=OF_SITE,
        check="coordinator",
        says="through the proxy 127.0.0.1:9 that the environment names: the proxy refused or could not be reached",
        spoil=_proxy("hub.example.org:7443"),
    ),
    Mistake(
        name="a proxy that refuses",
        command=OF_SITE,
        check="coordinator",
        says="403 Forbidden); add the coordinator to no_proxy if it is inside your network",
        spoil=_forbidding,
    ),
    Mistake(
        name="a proxy with a password",
        command=OF_SITE,
        check="coordinator",
        says="must have the form http://host:port, without user and password",
        spoil=_proxy("hub.example.org:7443", proxy="http://lada:secret@127.0.0.1:9"),
    ),
    Mistake(
        name="no_proxy names another network",
        command=OF_SITE,
        check="coordinator",
        says="coordinator at 192.0.2.7:7443, through the proxy 127.0.0.1:9",
        spoil=_proxy("192.0.2.7:7443", no_proxy="198.51.100.0/24,[2001:db8::7]"),
    ),
    Mistake(
        name="no_proxy names the coordinator's network",
        command=OF_SITE,
        check="coordinator",
        says="nobody listens at 192.0.2.7:7443 yet",
        level="works",
        spoil=_direct("192.0.2.7:7443", "localhost,192.0.2.0/24"),
    ),
    Mistake(
        name="no_proxy names an IPv6 address in brackets",
        command=OF_SITE,
        check="coordinator",
        says="nobody listens at [2001:db8::7]:7443 yet",
        level="works",
        spoil=_direct("[2001:db8::7]:7443", "[2001:db8::7]"),
    ),
    Mistake(
        name="the coordinator's port is taken",
        command=OF_HUB,
        check="port",
        says="Address already in use; stop the process that uses the port, or choose another",
        spoil=_port_taken,
    ),
    Mistake(
        name="the coordinator listens on another machine's address",
        command=OF_HUB,
        check="port",
        says="cannot listen on 203.0.113.7:7443",
        spoil=keys(SERVER, listen="203.0.113.7:7443"),
    ),
)
