"""A slice: what a pool process does with the messages of its lanes."""
