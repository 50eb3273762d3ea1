"""Upkeep: what a worker does for the bus beside consuming."""
