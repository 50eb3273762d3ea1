"""Publishing: from a value to its receipt."""
