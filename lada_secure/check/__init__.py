"""What `lada check` is for every role: findings, the list of checks, the report, the command."""
