"""A site: the one party that sees its own private records."""
