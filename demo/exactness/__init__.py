"""Whether the demo has handled every order once, as counted independently of the bus."""
