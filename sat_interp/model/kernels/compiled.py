"""A C++ source as a loaded library: compiled once for this processor, tried, kept, verified.

The library is cached in ``<cache>/native`` under a name with the hash of its content, after a
separate process has run it. It is loaded only if the content has that hash, the file belongs to
this user or root, and other users cannot write to it. A private copy is loaded, so that later
changes to the file do not affect a running process.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from sat_interp._util.files import default_cache, write_atomically

VERSION_SECONDS, COMPILE_SECONDS, PROBE_SECONDS = 10, 300, 60
LARGEST = 64 << 20
"""Bytes of the largest library that is loaded."""

log = logging.getLogger(__name__)


def load_compiled(
    source: Path, flags: tuple[str, ...], compiler: str, probe: str, name: str = "kernels"
) -> ctypes.CDLL:
    """The library of a source.

    Args:
        probe: a Python program that runs the library, whose path is its argument, and succeeds if
            it works; it runs once, after compiling.

    Raises:
        OSError: it cannot be compiled or loaded, or fails its probe.
        subprocess.SubprocessError: the compiler fails or does not end.
    """
    version = _output([compiler, "--version"], VERSION_SECONDS)
    identity = [source.read_bytes(), version, _processor().encode(), " ".join(flags).encode()]
    stem = f"{name}-{_digest(bytes(1).join(identity))[:16]}"
    folder = default_cache() / "native"
    content = _kept(folder, stem)
    if content is None:
        content = _compile(source, flags, compiler)
        _try(content, probe)
        _keep(folder, stem, content)
    return _load(content, folder)


def _compile(source: Path, flags: tuple[str, ...], compiler: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "library.so"
        _output([compiler, *flags, str(source), "-o", str(made)], COMPILE_SECONDS)
        return made.read_bytes()


def _output(command: list[str], seconds: float) -> bytes:
    """Output of a command, through files, because a grandchild can keep a pipe open forever.

    Raises:
        subprocess.SubprocessError: it fails, or does not end in time.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=True,
                timeout=seconds,
                start_new_session=True,
            )
        except subprocess.CalledProcessError as error:
            err.seek(0)
            error.stderr = err.read(2_000).decode(errors="replace")
            raise
        out.seek(0)
        return out.read(1 << 16)


def _kept(folder: Path, stem: str) -> bytes | None:
    """The content of a sound library that was kept; each other one is named in a warning."""
    content = None
    for path in sorted(folder.glob(f"{stem}-*.so")):
        try:
            content = _verified(path)
        except (OSError, ValueError) as error:
            log.warning("%s is not loaded (%s): compiling the library again", path, error)
            with suppress(OSError):
                path.unlink()
    return content


def _verified(path: Path) -> bytes:
    """The content of a library.

    Raises:
        ValueError: it belongs to another user, other users can write to it, it is not a file, or
            its content does not have the hash in its name.
        OSError: it cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if hasattr(os, "geteuid"):
            if status.st_uid not in (0, os.geteuid()):
                raise ValueError("it belongs to another user")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ValueError("other users can write to it")
        if status.st_size > LARGEST:
            raise ValueError("it is too large")
        content = file.read()
    if _digest(content) != path.stem.rpartition("-")[2]:
        raise ValueError("it is damaged")
    return content


def _keep(folder: Path, stem: str, content: bytes) -> None:
    path = folder / f"{stem}-{_digest(content)}.so"
    try:
        write_atomically(path, content)
        path.chmod(0o644)
    except OSError as error:
        reason = error.strerror or error
        log.warning("%s cannot be cached (%s): every command will compile it", path, reason)


def _try(content: bytes, probe: str) -> None:
    """Run the library in a separate process.

    Raises:
        OSError: it crashes, computes something else, or does not end.
    """
    if not sys.executable:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        path.write_bytes(content)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", probe, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError("the compiled library's test does not end") from None
        finally:
            process.kill()
            process.wait()
    if code:
        raise OSError(f"the compiled library's test fails (exit code {code})")


def _load(content: bytes, folder: Path) -> ctypes.CDLL:
    """Load a private copy; where files for temporary use cannot be run, one beside the cache."""
    try:
        return _load_from(content, None)
    except OSError:
        folder.mkdir(parents=True, exist_ok=True)
        return _load_from(content, folder)


def _load_from(content: bytes, parent: Path | None) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as private:
        path = Path(private) / "library.so"
        path.write_bytes(content)
        return ctypes.CDLL(str(path))  # stays loaded when the file is gone


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _processor() -> str:
    """What ``-march=native`` depends on: a home may be shared between unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU"))}
    return "\n".join(sorted(kept))
