"""Foreign bytes, secrets and complaints: what everything else leans on."""
