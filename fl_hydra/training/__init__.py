"""The one loop: rows, engines, the fabric between them, and state that belongs to clients."""
