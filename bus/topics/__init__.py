"""Topics and groups: declared in code and database, kept in Redis."""
