"""``python -m lit_sft``."""

import sys

from lit_sft.main import main

if __name__ == "__main__":
    sys.exit(main())
