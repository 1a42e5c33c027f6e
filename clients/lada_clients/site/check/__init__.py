"""A site's part of `lada check`."""
