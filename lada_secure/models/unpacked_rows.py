"""Forward passes over rows that hold one text each, without asking the device whether they do.

Before a forward pass transformers looks whether its positions start again within a row, as they do
where several texts are packed into one. The look is a question to the device: the CPU waits until
everything before it is done. Rows here are never packed, and their positions count from 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from transformers import masking_utils

_QUESTION: Final = "find_packed_sequence_indices"
_installing = threading.Lock()


class _Here(threading.local):
    unpacked = False


_here = _Here()


def _install() -> None:
    """Put a function in the question's place that asks as before, unless it is known here."""
    with _installing:
        asked: Any = getattr(masking_utils, _QUESTION, None)
        # None: a version of the library that asks nothing, or otherwise.
        if asked is None or getattr(asked, "knows_unpacked_rows", False):
            return

        def find(position_ids: Any) -> Any:
            return None if _here.unpacked else asked(position_ids)

        find.knows_unpacked_rows = True  # type: ignore[attr-defined]
        setattr(masking_utils, _QUESTION, find)


@contextmanager
def unpacked_rows() -> Iterator[None]:
    """While active, this thread's forward passes have one text a row, from position 0 on."""
    _install()
    before = _here.unpacked
    _here.unpacked = True
    try:
        yield
    finally:
        _here.unpacked = before
