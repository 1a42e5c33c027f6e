"""Whether a stored file has the schema version that this software reads and writes."""

from __future__ import annotations

from lada_secure.errors import LadaError


def check_schema_version(
    stored: str | None, *, current: int, where: str, refusal: type[LadaError]
) -> None:
    """Refuse a file of another version.

    Args: stored: what the file says, None where it says nothing. current: of this software.
      where: the file, for messages. refusal: class of the error.
    Raises: refusal: another version than `current`, or not a version at all.
    """
    if stored is None or not stored.isascii() or not stored.isdecimal() or int(stored) < 1:
        raise refusal(
            f"{where}: expected a schema version from 1 to {current}, it says {stored!r}; it is "
            "damaged or not ours, restore it from its backup"
        )
    if int(stored) != current:
        reads = "up to" if int(stored) > current else "from"
        raise refusal(
            f"{where}: it has schema version {stored}, this software reads {reads} {current}; use "
            "the version of lada that wrote it, or a newer one. Nothing was changed"
        )
