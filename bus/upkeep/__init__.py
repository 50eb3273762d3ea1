"""What a worker does for the bus beside consuming."""
