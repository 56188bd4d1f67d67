"""The one exception that means "your input, not our bug": it is shown as one message, without a traceback."""


class InputError(ValueError):
    """Bad input. The message names the file and line or the key, what was found and what is accepted."""
