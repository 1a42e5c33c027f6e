"""One tree of errors for all packages; each class has a stable code and an exit status.

Messages say what, where, expected, got and what to do, and never hold a secret.
"""

from __future__ import annotations

from typing import ClassVar


class LadaError(Exception):
    """Base of every error that this project raises on purpose.

    `code` is stable and fit for metrics; `exit_status` is what the command line returns:
    2 where the caller made the mistake, 1 where a run failed.
    """

    code: ClassVar[str] = "lada"
    exit_status: int = 1


class ParameterError(LadaError):
    """A value given by the caller is wrong."""

    code = "parameter"
    exit_status = 2


class Stopped(LadaError):
    """Somebody has stopped the process by a signal, and what it had begun is undone.

    signal_number: as a shell tells it, 128 + n.
    """

    code = "stopped"

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


class LocalProtocolError(LadaError):
    """We broke the protocol ourselves: a defect in this software."""

    code = "local_protocol"


class PeerError(LadaError):
    """Another party sent something wrong.

    `reason` is one of the error codes of SPEC.md, `peer` the sender as far as it is known,
    `round_id` the round or None outside a round.
    """

    code = "peer"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "malformed",
        peer: str | None = None,
        round_id: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.peer = peer
        self.round_id = round_id


class PrivacyBudgetExceeded(LadaError):
    """A release would pass the cap; it was refused before any record was touched."""

    code = "privacy_budget_exceeded"


class TrainingFailed(LadaError):
    """Training cannot go on; what it has spent so far stands in the ledger."""

    code = "training_failed"


class LedgerError(LadaError):
    """A ledger is damaged, belongs to somebody else, or does not allow what was asked."""

    code = "ledger"


class TransportError(LadaError):
    """Wraps every foreign exception of sockets, disks and databases."""

    code = "transport"


class DiskError(TransportError):
    """A party's own disk cannot be written, or not be read: full, read-only, not permitted."""

    code = "disk"
