"""Pages inside the Django admin: topics, groups, lag, offsets, workers. Reads through bus.observe only."""
