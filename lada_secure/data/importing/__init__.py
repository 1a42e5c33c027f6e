"""From somebody's own tables to records: sources, the mapping, rejects, splits and what is told."""
