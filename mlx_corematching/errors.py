"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something that was given (a picture, a checkpoint, a setting) cannot be used.

    The message is one sentence that says what is wrong and what to do. The command
    line prints it without a traceback and exits with status 2.
    """
