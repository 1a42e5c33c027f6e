"""The signed ledger: entries, what may follow what, and its checks."""
