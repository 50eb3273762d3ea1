"""Consuming: the table of handlers, one lane, and what one round trip asks and learns of it."""
