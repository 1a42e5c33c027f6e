"""Puts generated hostile records into one site, behind every check of its files.

Put on PYTHONPATH, it is loaded by every Python at its start. The site that $LADA_HOSTILE_SITE names
gets them; $LADA_HOSTILE_SEED is the seed of their generator.
"""

import os
import sys

_SITE = os.environ.get("LADA_HOSTILE_SITE")

if _SITE and any(_SITE in argument for argument in sys.orig_argv):
    from hostile_records import hostile_units

    from lada_secure.data.records import Record
    from lada_secure.privacy.release import private_records
    from lada_secure.privacy.release.units import Unit

    _plain = private_records.PrivateRecords.__init__

    def _with_hostile(self, units):
        added = [
            Unit(
                unit_id=unit,
                records=tuple(Record(unit=unit, **fields) for fields in records),
            )
            for unit, records in hostile_units(int(os.environ["LADA_HOSTILE_SEED"]))
        ]
        with open(os.environ["LADA_HOSTILE_NOTE"], "a", encoding="ascii") as note:
            note.write(f"{len(added)}\n")
        _plain(self, (*added, *units))

    private_records.PrivateRecords.__init__ = _with_hostile
