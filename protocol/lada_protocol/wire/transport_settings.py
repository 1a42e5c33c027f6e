"""The settings of the whole transport, both ends; ten, each with its unit in its name.

The defaults hold over a link of 1 Mbit/s with a round trip of 300 ms and 2% loss, where TCP
carries about 0.3 Mbit/s: see docs/settings.md for the reason of each.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lada_protocol.settings import Settings


class TransportSettings(Settings):
    """The table `[transport]` of a settings file. The last five count at the coordinator only."""

    connect_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    answer_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    keepalive_interval_s: Annotated[float, Field(ge=10, le=3600)] = 30.0
    keepalive_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    longest_pause_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    calls_per_s: Annotated[float, Field(ge=1)] = 50.0
    burst_calls: Annotated[int, Field(ge=1)] = 200
    concurrent_calls: Annotated[int, Field(ge=1, le=1000)] = 4
    bytes_per_s: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    stored_bytes: Annotated[int, Field(ge=1)] = 64 << 30
