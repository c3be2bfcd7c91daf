"""``python -m attnguide``."""

import sys

from attnguide.cli import main

if __name__ == "__main__":
    sys.exit(main())
