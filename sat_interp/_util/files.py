"""Files written completely or not at all: under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sat_interp._util.errors import UserError


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path``; readers see the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the directory cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        return _write(Path(path), data)


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home directory.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no user {str(path).split('/')[0]!r}") from None


def files_below(path: Path, kept: str = ".*") -> dict[str, Path]:
    """Return the files in a directory and in those below it, or a file itself.

    Args:
        path: the file or the directory; none of the files of one that does not exist.
        kept: regular expression that a relative path must match as a whole.

    Returns:
        The files by relative path, in its order; '' is a file itself. Files that are hidden, or in
        a hidden directory below ``path``, are left out.
    """
    if path.is_file():
        return {"": path}
    relative = {one.relative_to(path): one for one in path.rglob("*") if one.is_file()}
    visible = {
        place.as_posix(): one
        for place, one in relative.items()
        if not any(part.startswith(".") for part in place.parts)
    }
    return {name: visible[name] for name in sorted(visible) if re.fullmatch(kept, name)}


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the name of the file or directory that could not be written to errors of the system.

    A full disk is reported without one by the system, and by libraries in Rust (tokenizers,
    safetensors) as exceptions of other classes.

    Raises:
        OSError: in place of those exceptions.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(error.filename).suffix != ".tmp":
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno or 0, reason, str(path)) from error
    except UserError:
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def directory(path: str | Path) -> Iterator[Path]:
    """Create a directory for the block; what was created and is empty after it is removed again.

    Raises:
        OSError: it cannot be created.
    """
    wanted = Path(path)
    created = [one for one in (wanted, *wanted.parents) if not one.exists()]
    wanted.mkdir(parents=True, exist_ok=True)
    try:
        yield wanted
    finally:
        for one in created:  # the innermost first
            with suppress(OSError):
                one.rmdir()


def _write(path: Path, data: bytes) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the name of a temporary file that is renamed to ``path`` when the block ends.

    Readers see the old file or the new one, never a part; a block that raises leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to ``path`` when the block ends without error.

    An existing ``path`` is replaced as a whole; a block that raises leaves it unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside: Path | None = None
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        with naming(path):
            yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            # A directory cannot be renamed over a filled one: step aside, then remove.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, aside / path.name)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        if aside is not None:
            if not path.exists() and (aside / path.name).exists():
                os.replace(aside / path.name, path)
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def put_back_directories(parent: str | Path) -> None:
    """Restore directories that a process killed inside :func:`atomic_directory` had moved aside.

    Between its two renames the old directory X is in ``.X.*.old/X`` and nothing is at ``X``: it is
    moved back. Only safe for the single process that writes in ``parent``.
    """
    asides = sorted(Path(parent).glob(".*.old"), key=lambda aside: aside.stat().st_mtime)
    for aside in reversed(asides):  # the last one moved aside is the newest
        for old in list(aside.iterdir()) if aside.is_dir() else []:
            if aside.name.startswith(f".{old.name}.") and not (Path(parent) / old.name).exists():
                os.replace(old, Path(parent) / old.name)


def sync_directory(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut, where directories can be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def default_cache() -> Path:
    """``$SAT_INTERP_CACHE``, or ``sat_interp`` in the user's cache directory."""
    if own := os.environ.get("SAT_INTERP_CACHE"):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sat_interp"


def file_name(name: str) -> str:
    """Return a model's name as a file may be called: ``demo:local-k4`` is ``demo-local-k4``."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
