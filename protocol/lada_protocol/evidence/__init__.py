"""Checks of a finished study, by whoever was not there."""
