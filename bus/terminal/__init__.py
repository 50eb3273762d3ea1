"""How the command line reads files and shows answers: tables, JSON, words, progress bars."""
