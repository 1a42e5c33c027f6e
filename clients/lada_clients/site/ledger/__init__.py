"""A site's privacy ledger on disk, its populations and their budgets."""
