"""Side-by-side speed against peers."""
