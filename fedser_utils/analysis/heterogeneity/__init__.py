"""How unlike the clients are, what may help, and what helped."""
