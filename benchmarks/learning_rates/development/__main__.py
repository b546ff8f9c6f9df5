"""``python -m benchmarks.learning_rates.development``."""

from __future__ import annotations

import sys

from ..start import start

if __name__ == "__main__":
    sys.exit(start("benchmarks.learning_rates.development"))
