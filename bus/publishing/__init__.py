"""From a value to its receipt."""
