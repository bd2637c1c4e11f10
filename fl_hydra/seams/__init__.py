"""What a method handles in a round: rows of parameters, the clients behind them, and what they send."""
