"""What a site checks before it takes part: files, records, plan, policy."""
