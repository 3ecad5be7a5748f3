"""Error handling of the scripts. It imports nothing beyond a plain install."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lit_sft.errors import SickRun, UserError


def in_one_line(main: Callable[[], None]) -> None:
    """Call a script's ``main``; a ``UserError`` or a missing file ends it with a one-line message, without a traceback.

    A sick run has the same exit code as in lit_sft; a closed output pipe, as with ``head``, has exit code 141. The
    user's own classes are imported from the current directory, as with ``python -m lit_sft``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: labels and texts may be of any script
    sys.path.insert(1, str(Path.cwd()))
    try:
        main()
    except SickRun as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from error
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
