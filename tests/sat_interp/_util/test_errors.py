"""Lines made of other libraries' error messages."""

from __future__ import annotations

from sat_interp._util.errors import first_line


def test_an_announced_reason_is_kept():
    announced = RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for W_Q.\n\tb")
    assert first_line(announced).endswith("for X: size mismatch for W_Q.")
    assert first_line(RuntimeError("a\nb")) == "a"
    assert first_line(RuntimeError("only:")) == "only:"
    assert first_line(RuntimeError()) == "RuntimeError"
