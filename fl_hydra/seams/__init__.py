"""What a method works with in a round: rows of parameters, their clients, and the messages that they send."""
