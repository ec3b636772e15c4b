"""``sat-eval curves``."""

from __future__ import annotations

from pathlib import Path


def curves(models: list[str], out: str = "results") -> list[Path]:
    """Training curves of several runs in one figure: both streams, validations as points.

    Examples::

        sat-eval curves runs/baseline runs/local-k4 --out results/mine

    Args:
        models: directories that sat-train wrote, or their log.jsonl.
        out: directory of the figure (curves.png, curves.svg).

    Returns:
        The files written.
    """
    from evaluations.commands.show import console, say
    from evaluations.comparison.curves import draw_curves, read_run
    from evaluations.tables import draw

    figure = draw_curves([read_run(path) for path in models])
    written = draw.save({"": [figure]}, Path(out), "curves")
    say(console(), ", ".join(map(str, written)))
    return written
