"""What runs can be followed by."""
