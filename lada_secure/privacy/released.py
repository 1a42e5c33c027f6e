"""Values that may leave a site: noised, paid for in the ledger, or computed from such values.

Outbound messages take `Released[T]` and nothing else. A plain value does not type-check there,
and a `Released` cannot be made by calling the class: only by `LedgerBook.commit`, and from another
released value by `post_process`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, NoReturn, TypeVar

import numpy as np

from lada_secure.errors import LocalProtocolError

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)


class _Seal:
    """Only this module holds the one instance, so only this module can make a `Released`."""

    __slots__ = ()


_SEAL: Final = _Seal()


class Released(Generic[T_co]):
    """A value whose privacy cost stands in a ledger. Immutable, never pickled or copied.

    Attributes:
        value: what may leave. Arrays are read-only.
        paid_by: hash of the reserve entry that paid for the newest release it depends on.
        paid_by_all: hashes of all reserve entries that it depends on, in order.
        label: what it is, for messages and logs.

    Guarantee: holds against mistakes, not against an adversary inside the same process.
    """

    __slots__ = ("_label", "_paid_by_all", "_value")

    _value: T_co
    _paid_by_all: tuple[str, ...]
    _label: str

    def __init__(self, seal: _Seal, value: T_co, paid_by_all: tuple[str, ...], label: str) -> None:
        if seal is not _SEAL:
            raise LocalProtocolError(
                "a Released value cannot be made directly: pass the value through "
                "LedgerBook.commit, or derive it from released values with post_process"
            )
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_paid_by_all", paid_by_all)
        object.__setattr__(self, "_label", label)

    @property
    def value(self) -> T_co:
        """What may leave the site."""
        return self._value

    @property
    def paid_by(self) -> str:
        """Hash of the ledger's reserve entry that paid for the newest part."""
        return self._paid_by_all[-1]

    @property
    def paid_by_all(self) -> tuple[str, ...]:
        """Hashes of all reserve entries that this value depends on, oldest first."""
        return self._paid_by_all

    @property
    def label(self) -> str:
        """What the value is."""
        return self._label

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise LocalProtocolError(f"a Released value is immutable; refused to set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise LocalProtocolError(f"a Released value is immutable; refused to delete {name!r}")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A pickle can be edited, and unpickling would make a Released without a ledger.
        raise LocalProtocolError("a Released value cannot be pickled or copied; send its value")

    def __init_subclass__(cls) -> NoReturn:
        raise LocalProtocolError("Released cannot be subclassed: a subclass could skip its check")

    def __repr__(self) -> str:
        return f"Released({self._label!r}, paid_by={self.paid_by[:12]}...)"


def require_released(value: object, *, what: str) -> None:
    """The runtime half of the check, for the constructors of outbound messages.

    Raises: LocalProtocolError: `value` is not a `Released`.
    """
    if type(value) is not Released:
        raise LocalProtocolError(
            f"{what}: expected a Released value, got {type(value).__name__}; whatever is derived "
            "from private records must pass a ledgered mechanism before it is sent"
        )


def post_process(
    released: Released[T], compute: Callable[[T], U], *, label: str | None = None
) -> Released[U]:
    """Derive a value from a released one; costs nothing.

    The caller ensures that `compute` reads no private record: public data and other released
    values only (then the post-processing property of DP holds; Dwork and Roth 2014, Prop. 2.1).

    Args: released: what to start from. compute: function of its value. label: default the old one.
    """
    require_released(released, what="post_process")
    value = compute(released.value)
    if isinstance(value, np.ndarray):
        # An array that somebody else still holds could change after it was released.
        value = value.copy()
    return Released(_SEAL, value, released.paid_by_all, label or released.label)


def released_output(
    output: bytes,
    *,
    keep: Callable[[], object],
    paid_by: str,
    label: str,
    after: Sequence[Released[object]],
) -> Released[bytes]:
    """Let the ledger keep an output, and only then hand it out: `LedgerBook.commit` calls this.

    Args: keep: stores it, or raises. paid_by: hash of its reserve entry. after: see there.
    """
    for earlier in after:
        require_released(earlier, what="after")
    keep()
    paid_by_all = dict.fromkeys(entry for earlier in after for entry in earlier.paid_by_all)
    return Released(_SEAL, output, tuple({**paid_by_all, paid_by: None}), label)
