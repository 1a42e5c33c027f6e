"""Whether a stored schema version can be read, and which migrations it needs.

Every database file says its version. Migrations only ever add, one version at a time, each in the
same transaction as the new number: a crash leaves the old version or the new one.
"""

from __future__ import annotations

from lada_secure.errors import LadaError


def versions_to_migrate(
    stored: str | None, *, current: int, where: str, refusal: type[LadaError]
) -> range:
    """The versions to migrate from, oldest first; empty where `stored` is `current`.

    Args: stored: what the file says, None where it says nothing. current: of this software.
      where: the file, for messages. refusal: class of the error.
    Raises: refusal: newer than `current`, or not a version at all.
    """
    if stored is None or not stored.isascii() or not stored.isdecimal() or int(stored) < 1:
        raise refusal(
            f"{where}: expected a schema version from 1 to {current}, it says {stored!r}; it is "
            "damaged or not ours, restore it from its backup"
        )
    if int(stored) > current:
        raise refusal(
            f"{where}: it has schema version {stored}, this software reads up to {current}; use "
            "the version of lada that wrote it, or a newer one. Nothing was changed"
        )
    return range(int(stored), current)
