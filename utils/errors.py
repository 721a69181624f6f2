"""The error of everything that is wrong with what the user gave."""


class UserError(Exception):
    """A problem with what the user gave; the message says what is wrong and what to do."""
