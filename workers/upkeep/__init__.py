"""Upkeep: what the worker that leads does for all."""
