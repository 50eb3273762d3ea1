"""What things are called in Redis, and how they are written there."""
