"""Uplinks: the encoding of what clients send, such as compression."""
