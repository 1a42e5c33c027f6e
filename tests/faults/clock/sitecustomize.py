"""A wall clock that can be wrong: put on PYTHONPATH, it is loaded by every Python at its start.

Python's `time.time` and `datetime.now` are shifted by the seconds that stand in the file which
$LADA_FAULTS_CLOCK names. Monotonic clocks and the clocks of native libraries are right.
"""

import datetime as _datetime
import os
import time

_FILE = os.environ.get("LADA_FAULTS_CLOCK", "")
_time = time.time
_now = _datetime.datetime


def _shift_s():
    try:
        with open(_FILE, encoding="ascii") as file:
            return float(file.read() or 0.0)
    except OSError:
        return 0.0


class _Shifted(_datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return _now.now(tz) + _datetime.timedelta(seconds=_shift_s())

    @classmethod
    def utcnow(cls):
        return cls.now(_datetime.UTC).replace(tzinfo=None)


class _Kind(type):
    """`isinstance(x, datetime)` stays true for what native code makes."""

    def __instancecheck__(cls, instance):
        return isinstance(instance, _now)


if _FILE:
    time.time = lambda: _time() + _shift_s()
    time.time_ns = lambda: int(time.time() * 1e9)
    _datetime.datetime = _Kind("datetime", (_Shifted,), {})
