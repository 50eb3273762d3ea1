"""Upkeep: what a worker does for the bus besides consuming."""
