"""How a script ends by a mistake; what it imports is there in a plain install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from lit_sft.errors import UserError


def in_one_line(main: Callable[[], None]) -> None:
    """Call a script's ``main``; a mistake that it tells, or a file that isn't there, ends it with that line alone.

    Classes of the user's own are found where the command runs, as by ``python -m lit_sft``.
    """
    sys.path.insert(1, str(Path.cwd()))
    try:
        main()
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
