"""Values that may leave a site: noised, paid for in the ledger, or computed from such values.

Outbound messages take `Released[T]` and nothing else. A plain value does not type-check there,
and a `Released` cannot be made by calling the class: only by `LedgerBook.commit`, and from another
released value by `post_process`.
"""

from __future__ import annotations

from collections.abc import Callable
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
        label: what it is, for messages and logs.

    Guarantee: holds against mistakes, not against an adversary inside the same process.
    """

    __slots__ = ("label", "paid_by", "value")

    value: T_co
    paid_by: str
    label: str

    def __init__(self, seal: _Seal, value: T_co, paid_by: str, label: str) -> None:
        if seal is not _SEAL:
            raise LocalProtocolError(
                "a Released value cannot be made directly: pass the value through "
                "LedgerBook.commit, or derive it from released values with post_process"
            )
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "paid_by", paid_by)
        object.__setattr__(self, "label", label)

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
        return f"Released({self.label!r}, paid_by={self.paid_by[:12]}...)"


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
    return Released(_SEAL, value, released.paid_by, label or released.label)


def released_output(
    output: bytes, *, keep: Callable[[], object], paid_by: str, label: str
) -> Released[bytes]:
    """Let the ledger keep an output, and only then hand it out: `LedgerBook.commit` calls this.

    Args: keep: stores it, or raises. paid_by: hash of its reserve entry.
    """
    keep()
    return Released(_SEAL, output, paid_by, label)
