"""Everything that dials out: sites, the auditor, and the commands around them."""
