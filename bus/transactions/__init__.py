"""What goes with the database's transaction."""
