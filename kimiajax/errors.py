"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do; the command line prints it as one line."""


class UsageError(UserError):
    """A wish that cannot be met, or a package that is absent: nothing is wrong with the data."""
