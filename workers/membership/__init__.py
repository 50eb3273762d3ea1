"""Membership: which workers are there, and which lanes are whose."""
