"""Errors that are the user's mistake, as opposed to bugs of this package."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a file, a column or an option.

    The message is one line: what is wrong, where (file, row, key) and what to do. The command line prints it
    to stderr and exits with ``exit_code``, without a traceback (``LIT_SFT_DEBUG=1`` shows it).
    """

    exit_code = 2


class SickRun(UserError):
    """A fit is stopped because it can't succeed: the message says what was seen, where, and what to do.

    Unlike after other mistakes, the run's folder is kept, since its curves show what happened. The exit code is a
    separate one: the same command would fail again, and a hyperparameter search may go on with its next point.
    """

    exit_code = 3


# A full disk, an exceeded quota, a limit on file size: the user can make room and run the command again.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)  # to this user, or to anyone


def no_room(error: BaseException | None) -> OSError | None:
    """Return the out-of-space error (``NO_ROOM``) that an exception is or was caused by; None if there is none."""
    seen: set[int] = set()  # an exception that is raised again may be in the context of its own context
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def one_line(error: BaseException) -> str:
    """An error's message in one line, or its type's name if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean X? `` with the nearest known name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]}? " if found else ""
