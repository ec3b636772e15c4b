"""``sat-eval`` as a job of a cluster runs it; ``sat-eval report`` writes tables and figures."""

from __future__ import annotations

import sys

from evaluations.cli import main

if __name__ == "__main__":
    sys.exit(main(records_only=True))
