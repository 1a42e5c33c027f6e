"""The coordinator's part of `lada check`."""
