"""The exception for what the user can fix."""


class InputError(ValueError):
    """Something given to us cannot be used. The message names the file, row or option, and the remedy.

    Scripts print it as one line, without a traceback.
    """
