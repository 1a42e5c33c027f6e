"""The one false-alarm rate of every statistical test."""

ALPHA = 1e-6
