"""Training of the networks that a domain lacks."""
