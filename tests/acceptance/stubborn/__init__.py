"""An app whose handler fails for one key until that key is healed, and never gives up."""
