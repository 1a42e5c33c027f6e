"""The wire contract: signed messages, identity, study plans and the logic of a round.

No sockets, clock, disk or global randomness here: time, keys and random values are arguments.
The prose is in `protocol/SPEC.md`.
"""
