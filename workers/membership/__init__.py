"""Membership: which workers there are, and which lanes each of them holds."""
