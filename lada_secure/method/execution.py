"""How a machine computes a site's part; light to import, for settings files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a site's machine computes; nothing here changes a guarantee.

    batch_size: texts at a time, as memory allows. threads: CPU threads, None leaves them.
    """

    threads: int | None = 1
    batch_size: int = 16
