"""How many local steps a round has."""
