"""The folder of a new party: whole, or not there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lada_clients.setup.party_folder import new_folder
from lada_secure.errors import Stopped


def test_whoever_is_stopped_leaves_no_half_of_a_folder(tmp_path: Path) -> None:
    def make() -> None:
        with new_folder(tmp_path / "site") as part:
            (part / "key").write_text("secret")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        make()
    assert list(tmp_path.iterdir()) == []
