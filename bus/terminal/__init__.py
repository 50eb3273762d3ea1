"""Reads the files of the command line, and shows its answers: tables, JSON, words, progress bars."""
