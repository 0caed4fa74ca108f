"""The one error that a user's input can cause in a job."""


class InputError(ValueError):
    """Input or an option that a job cannot work with.

    The message is one line: what was wrong, where (option, or file with line or byte offset), the value that
    was met and what would be right. `python -m train` prints it and ends with exit code 2.
    """
