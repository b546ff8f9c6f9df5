"""``python -m metacurv.measure``."""

from __future__ import annotations

import sys

from metacurv.measure.cli import main

if __name__ == "__main__":
    sys.exit(main())
