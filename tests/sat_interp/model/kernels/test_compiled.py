"""The compiled library: verified before it is loaded, tried before it is kept, never in the way."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sat_interp.model.kernels import compiled
from sat_interp.model.kernels import cpu as native

COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

ANSWER = 'extern "C" int answer() { return 42; }'
PROBE = "import ctypes, sys; assert ctypes.CDLL(sys.argv[1]).answer() == 42"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "source.cpp"
    path.write_text(ANSWER)
    return path


def answer(source: Path, probe: str = PROBE) -> int:
    found: int = compiled.load_compiled(source, ("-shared", "-fPIC"), str(COMPILER), probe).answer()
    return found


def kept(source: Path) -> Path:
    (path,) = (source.parent / "cache" / "native").glob("*.so")
    return path


def test_it_is_compiled_once_and_verified_each_time(source: Path) -> None:
    assert answer(source) == 42
    path, before = kept(source), kept(source).stat().st_mtime_ns
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert answer(source) == 42
    assert (kept(source), path.stat().st_mtime_ns) == (path, before)


def _write(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content(path.read_bytes())) and None


def _replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": _write(lambda content: b""),
    "truncated": _write(lambda content: content[:3_000]),
    "cut by a byte": _write(lambda content: content[:-1]),
    "longer": _write(lambda content: content + b"\0"),
    "one bit": _write(
        lambda content: content[:2_000] + bytes([content[2_000] ^ 1]) + content[2_001:]
    ),
    "zeros": _write(lambda content: bytes(len(content))),
    "text": _write(lambda content: b"#!/bin/sh\n"),
    "a pipe": _replace(os.mkfifo),
    "a link": _replace(lambda path: path.symlink_to("/bin/true")),
    "a link to nothing": _replace(lambda path: path.symlink_to("nowhere")),
    "written by others": lambda path: path.chmod(0o666),
    "a directory": _replace(lambda path: path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_it_is_compiled_anew(
    source: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer(source)
    path = kept(source)
    DAMAGES[damage](path)
    assert answer(source) == 42
    assert f"{path} is not loaded" in caplog.text
    assert all("\n" not in record.message for record in caplog.records)
    if damage == "a directory":
        assert "cannot be cached" in caplog.text
        return
    caplog.clear()
    assert answer(source) == 42
    assert not caplog.records


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown is for root")
def test_another_users_library_is_not_loaded(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer(source)
    evil = source.parent / "evil.cpp"
    evil.write_text('extern "C" int answer() { return 13; }')
    made = source.parent / "evil.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(evil), "-o", str(made)], check=True)
    content = made.read_bytes()
    path = kept(source)
    planted = path.with_name(f"{path.stem.rpartition('-')[0]}-{compiled._digest(content)}.so")
    path.unlink()
    planted.write_bytes(content)
    os.chown(planted, 12345, 12345)
    assert answer(source) == 42
    assert "belongs to another user" in caplog.text
    assert not planted.exists()


@pytest.mark.parametrize(
    "probe",
    [
        "raise SystemExit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_what_fails_its_trial_is_not_kept(source: Path, probe: str) -> None:
    with pytest.raises(OSError, match="the compiled library's test fails"):
        answer(source, probe)
    assert not list((source.parent / "cache").rglob("*.so"))


def test_a_trial_that_does_not_end_is_stopped(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "PROBE_SECONDS", 0.5)
    with pytest.raises(OSError, match="does not end"):
        answer(source, "import time; time.sleep(60)")


def test_a_cache_that_cannot_be_written_costs_only_the_keeping(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source.parent / "cache").write_text("a file")
    assert answer(source) == 42
    assert "cannot be cached" in caplog.text


def test_a_library_in_use_does_not_depend_on_the_file(source: Path) -> None:
    library = compiled.load_compiled(source, ("-shared", "-fPIC"), str(COMPILER), PROBE)
    kept(source).write_bytes(b"")
    assert library.answer() == 42


@pytest.fixture
def _fresh() -> Iterator[None]:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


SCRIPTS = {
    "hangs": "#!/bin/sh\nsleep 20\n",
    "hangs in a child": "#!/bin/sh\nsleep 20 &\nwait\n",
    "fails": "#!/bin/sh\necho no licence >&2\nexit 1\n",
    "says nothing and makes nothing": "#!/bin/sh\nexit 0\n",
    "makes rubbish": "#!/bin/sh\nfor last; do :; done\n"
    '[ "$last" = --version ] || echo rubbish > "$last"\n',
    "is no program": "\x7fELF",
}


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_compiler_of_any_conduct_costs_speed_only(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "compiler"
    path.write_text(SCRIPTS[script])
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "VERSION_SECONDS", 0.5)
    before = time.monotonic()
    assert not native.takes("gelu_new", torch.zeros(1))
    assert time.monotonic() - before < 20
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "the CPU kernels cannot be built" in record.message
    assert "\n" not in record.message
    assert not list(tmp_path.rglob("*.so"))


def test_the_kernels_probe_finds_a_kernel_that_computes_something_else(tmp_path: Path) -> None:
    library = tmp_path / "wrong.so"
    text = native.SOURCE.read_text()
    for source, code in ((text, 0), (text.replace("GELU_CUBIC = 0.044715f", "GELU_CUBIC = 9"), 1)):
        (tmp_path / "kernels.cpp").write_text(source)
        command = [
            str(COMPILER),
            *(f for f in native.FLAGS if f != "-O3"),
            "-O0",
            str(tmp_path / "kernels.cpp"),
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True, capture_output=True)
        found = subprocess.run(
            [sys.executable, "-I", "-c", native.PROBE, str(library)], capture_output=True
        )
        assert found.returncode == code, found.stderr
