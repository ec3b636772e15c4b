from __future__ import annotations

from sat_interp._util import progress


def steps(n: int) -> None:
    """A bar of n steps, the clock being ten seconds later at each."""
    clock = iter(range(0, 1000, 10))
    bar = progress.bar(total=n, desc="lm: losses", unit="tok")
    bar._time = lambda: float(next(clock))
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(n):
        bar.update(1)
    bar.close()


def test_without_a_terminal_there_are_lines_inside_a_command_only(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 15.0)
    steps(4)
    assert capsys.readouterr().err == ""
    with progress.lines():
        steps(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("lm: losses: ") for line in lines)
    assert any(line.endswith(" left") for line in lines)
    steps(4)
    assert capsys.readouterr().err == ""
