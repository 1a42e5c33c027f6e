"""Small disks of their own for the parties' state folders, so that one can be full."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SIZE: Final = "48m"
# As root directly; else as root of a user namespace of our own, where the kernel allows it.
_WAYS: Final = (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user"))


def can_mount() -> tuple[str, ...]:
    """The command prefix under which a program may mount disks; empty where there is none."""
    for way in _WAYS:
        probe = ["sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
        try:
            done = subprocess.run([*way, *probe], capture_output=True, check=False)
        except FileNotFoundError:
            return ()
        if done.returncode == 0:
            return way
    return ()


class MountedDisks:
    """Mounts a tmpfs over every folder while the block runs; without the right to, it does not.

    `full_by` says how disks are to be made full: "tmpfs", or "size limit" (RLIMIT_FSIZE).
    Only for a process in a mount namespace of its own.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._mounted: list[Path] = []
        self.full_by = "size limit"

    def __enter__(self) -> Self:
        for folder in self._folders:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "none", str(folder)],
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                self._unmount()
                return self
            self._mounted.append(folder)
        if self._mounted:
            self.full_by = "tmpfs"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unmount()

    def _unmount(self) -> None:
        for folder in self._mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
        self._mounted.clear()
