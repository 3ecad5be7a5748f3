"""How a script ends by a mistake; what it imports is there in a plain install."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lit_sft.errors import SickRun, UserError


def in_one_line(main: Callable[[], None]) -> None:
    """Call a script's ``main``; a mistake that it tells, or a file that isn't there, ends it with that line alone.

    A sick run has its own exit code here, too, and so has an output that nobody reads any more, as before ``head``.
    Classes of the user's own are found where the command runs, as by ``python -m lit_sft``.
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
