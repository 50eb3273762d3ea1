"""Which lanes have work, and which slot does it."""
