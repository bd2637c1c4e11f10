"""The one loop: planning, engines, local steps, evaluation, and state that belongs to clients."""
