"""The coordinator's checks of where it serves and keeps: its ports, and the board's database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from lada_protocol.party_checks import check_writable
from lada_protocol.wire.limits import split_address
from lada_secure.check.running import Found, fine, unneeded
from lada_secure.errors import ParameterError
from lada_secure.storage.state_folder import is_held
from lada_server.board.database import Database
from lada_server.rpc.service import check_free
from lada_server.settings import ServerSettings
from lada_server.study.places import known_studies


def port_findings(settings: ServerSettings) -> Iterator[Found]:
    """That the ports can be had: bound for an instant, and let go.

    Raises: ParameterError: one is taken, or the address is not this machine's.
    """
    if settings.monitor is not None and _collide(settings.listen, settings.monitor):
        raise ParameterError(
            f"listen is {settings.listen} and monitor {settings.monitor}; name two ports"
        )
    running = any(one.state == "running" for one in known_studies(settings.state_dir))
    if running or is_held(settings.state_dir):
        yield unneeded("the coordinator runs, and has its ports")
        return
    named = [settings.listen, *([settings.monitor] if settings.monitor is not None else [])]
    for address in named:
        check_free(*split_address(address))
    yield fine(f"{' and '.join(named)}: free", addresses=list(named))


def _collide(one: str, other: str) -> bool:
    """Whether two addresses want the same port of the same interface; 0 is any that is free."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    everywhere = {"", "0.0.0.0", "::"}  # noqa: S104
    return port == other_port != 0 and (
        host == other_host or not everywhere.isdisjoint({host, other_host})
    )


def database_found(settings: ServerSettings) -> Found:
    """Whether the board's database can be used; a SQLite file is not opened.

    Raises: ParameterError: no such kind, no driver, or no place for the file. TransportError: the
      server does not answer, or does not take us.
    """
    database = Database(settings.database_url)
    try:
        if database.file is not None:
            folder = Path(database.file).parent
            check_writable(folder, key="database")
            return fine(f"SQLite in {folder}", folder=str(folder))
        database.read("reach the database", lambda connection: connection.execute(sa.select(1)))
        return fine("PostgreSQL answers")
    finally:
        database.close()
