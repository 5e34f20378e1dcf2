"""Errors that a user can mend. Everything else is a bug of ours and keeps its traceback."""


class UserError(Exception):
    """One line that names the file, key or flag at fault and says how to mend it.

    `mllm.cli` prints it on stderr without a traceback and exits with 2.
    """


class BadSample(Exception):
    """A sample whose content cannot be used (truncated picture, text that is not UTF-8).

    The stream masks such a sample and writes a ledger line; a missing file or an input/output
    error is never a `BadSample`, because a retry could change it.
    """
