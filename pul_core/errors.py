"""Errors that a user can fix. Each message is one sentence: what is wrong, where, and what to do."""


class UserError(ValueError):
    """The input or the environment has to change; reported in one line, without a traceback."""


class DataError(UserError):
    """A data set, a file or a model that cannot be used."""


class NotFiniteError(UserError):
    """Features, a loss or weights that are NaN or infinite."""
