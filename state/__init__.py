"""State: what we know, derived from facts. Pure decisions; only the ledger touches a disk."""
