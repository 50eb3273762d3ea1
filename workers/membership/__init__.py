"""Who is there, and which lanes are whose."""
