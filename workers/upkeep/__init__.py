"""Upkeep: the work that the worker that leads does for all."""
