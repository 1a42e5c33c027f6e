"""Folders and files that outlive a process: locks, line files, schema versions."""
