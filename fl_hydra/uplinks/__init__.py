"""What becomes of what clients send: compression and the like."""
