"""What a user did wrong, as opposed to what we did wrong."""

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
    """A fit that is ended because it can't come to anything: the message says what was seen, where, and what to do.

    Its folder stays, unlike that of a run that ends by another mistake: the curves show how it came to this. It has an
    exit code of its own: the same command would end so again, and a search may go on with its next point.
    """

    exit_code = 3


# A full disk, a used-up quota, a limit on the size of files: room can be made, and the command given again.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)  # to this user, or to anyone


def no_room(error: BaseException | None) -> OSError | None:
    """The error of a full disk that an exception is, or that it came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def one_line(error: BaseException) -> str:
    """An error's message in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean X? `` for the nearest known name, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]}? " if found else ""
