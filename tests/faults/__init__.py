"""Fault injection: a whole federation in which everything is killed, stopped, cut and starved.

`python -m tests.faults --help`; docs/faults.md says what counts as survived.
"""
