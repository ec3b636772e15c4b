"""``sat-eval`` as a job of a cluster runs it: its figures are those of ``sat-eval report``."""

from __future__ import annotations

import sys

from evaluations.cli import main

if __name__ == "__main__":
    sys.exit(main(with_figures=False))
