"""What the worker that leads does for all."""
