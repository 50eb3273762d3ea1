"""Transactions: what is committed together with the project's own rows."""
