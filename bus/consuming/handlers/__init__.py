"""The functions that handle messages: what a call of one runs, and when one may take the place of another."""
