"""Foreign bytes, secrets, private files and complaints: what all other folders rest on."""
