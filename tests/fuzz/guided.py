"""Coverage-guided fuzzing of one party: `python guided.py PARTY FOLDER [libFuzzer options] CORPUS`.

Runs until `-atheris_runs` inputs are done and exits 0, or at the first finding with another
status. Only this project's packages are instrumented.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "doubles")]

with atheris.instrument_imports(
    include=["lada_protocol", "lada_secure", "lada_clients", "lada_server"],
    # Code of workers does not run here; models are not loaded.
    exclude=["lada_secure.dpsgd", "lada_secure.models"],
):
    from fuzz_memory import Growth
    from fuzz_parties import TARGETS
    from fuzz_study import record


def main(party: str, folder: Path, options: list[str]) -> None:
    """Record a study in `folder`, then fuzz. Never returns."""
    logging.disable(logging.CRITICAL)
    target = TARGETS[party](record(folder / "study"), folder)
    growth = Growth(beside_fuzzer=True)

    def one_input(data: bytes) -> None:
        target.run(data)
        growth.check()

    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
