"""The error for a user's mistakes."""


class UserError(ValueError):
    """A mistake of the user: its text is one line that says what was wrong, what is allowed and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
