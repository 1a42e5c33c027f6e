"""Texts of somebody else's for a person's screen."""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """A text that moves no cursor, colours nothing and turns no line round.

    A plan's title, a pool or a model may hold any character, a terminal's commands as well.

    Args: lines: whether line ends stay.
    """
    return "".join(
        one if one.isprintable() or (lines and one == "\n") else "\ufffd" for one in text
    )
