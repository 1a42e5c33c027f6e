"""Small models of the CPU tests, found whichever way this folder is run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "doubles"))
