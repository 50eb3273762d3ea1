"""One lane, and what one round trip asks and learns of it."""
