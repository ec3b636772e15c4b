"""Parcels: a command and its files, known by their content, for a machine without these files."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from sat_interp._util.files import atomic_directory, files_below, write_atomically
from sat_interp.engine.job import Shipment

CHUNK = 1 << 26
"""Bytes of a file that are read at a time."""
TEXT = (".json", ".jsonl")
"""Files that come back with the paths of the driver's machine in place of the worker's."""
SETTINGS = ("config.json", "cfg.json")
"""Files that arrive with the worker's paths: they tell on what a model was trained."""

Fetch = Callable[[str], Iterable[bytes]]
"""Returns the content of a file by its hash, in pieces."""


@dataclass(frozen=True)
class Tree:
    """A file or a directory of the driver's machine, without the content of its files.

    Attributes:
        path: where it lies on the driver's machine.
        files: hash of each file by its path relative to it; '' is the file itself.
    """

    path: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Parcel:
    """What a worker is sent.

    Attributes:
        trees: the inputs; files of later trees may name paths of earlier ones.
        out: the directory that the command fills, on the driver's machine.
        present: hash of each file that should lie there already, by relative path.
        keep: regular expression of the files that are sent back.
        n_threads: threads of the command.
        environment: variables that decide the numbers.
        version: of this package on the driver's machine.
        recipe: version of what the command computes, where it has one.
        imports: modules that the command imports anyway.
    """

    module: str
    arguments: Sequence[str]
    config: Mapping[str, Any] | None
    trees: Sequence[Tree]
    out: str
    present: Mapping[str, str]
    keep: str
    n_threads: int
    environment: Mapping[str, str]
    version: str
    recipe: str = ""
    imports: Sequence[str] = ()

    @functools.cached_property
    def key(self) -> str:
        """Hash of all that decides what the command writes; paths are part of it."""
        decisive = [
            self.module,
            self.arguments,
            self.config,
            [[tree.path, sorted(tree.files.items())] for tree in self.trees],
            self.environment,
            self.version,
            self.recipe,
        ]
        return _digest(json.dumps(decisive, sort_keys=True).encode())[:20]

    @property
    def hashes(self) -> set[str]:
        """The hashes of all files."""
        trees = {one for tree in self.trees for one in tree.files.values()}
        return trees | set(self.present.values())


def pack(
    shipment: Shipment, n_threads: int, environment: Mapping[str, str]
) -> tuple[Parcel, dict[str, Path]]:
    """Return the parcel of a command, and the file of each hash."""
    files: dict[str, Path] = {}

    def hashed(named: Iterable[tuple[str, Path]]) -> dict[str, str]:
        made = {name: file_hash(path) for name, path in named}
        files.update((made[name], path) for name, path in named)
        return made

    trees = [Tree(str(path), hashed(list(own.items()))) for path, own in shipment.inputs.items()]
    present = hashed([(name, shipment.out / name) for name in shipment.present])
    command = shipment.command
    parcel = Parcel(
        command.module,
        list(command.arguments),
        command.config,
        trees,
        str(shipment.out),
        present,
        shipment.keep,
        n_threads,
        dict(environment),
        own_version(),
        shipment.recipe,
        tuple(command.imports),
    )
    return parcel, files


def place(trees: Sequence[Tree], cache: Path, fetch: Fetch) -> dict[str, str]:
    """Put trees where this machine can read them; return by path on the driver's machine its own.

    A tree lies in ``cache/<hash of its content>/<its name>``; one that is there is not fetched.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for tree in trees:
        own = Path(tree.path).name
        decisive = [own, sorted(tree.files.items()), sorted(paths.items())]
        home = cache / _digest(json.dumps(decisive).encode())[:20]
        with FileLock(f"{home}.lock"):
            if not home.exists():
                with atomic_directory(home) as directory:
                    for name, digest in tree.files.items():
                        receive(directory / own / name, digest, fetch, paths)
        paths[tree.path] = str(home / own)
    return paths


def receive(path: Path, digest: str, fetch: Fetch, paths: Mapping[str, str]) -> None:
    """Write the content of a hash to a file; where it is settings, with paths replaced.

    Raises:
        OSError: what arrived is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, arrived = path.with_name(f".{path.name}.tmp"), hashlib.sha256()
    with open(partial, "wb") as file:
        for piece in fetch(digest):
            arrived.update(piece)
            file.write(piece)
    if arrived.hexdigest() != digest:
        raise OSError(f"{path.name} arrived damaged: its hash is not {digest[:12]}")
    if path.name in SETTINGS:
        partial.write_bytes(translate_bytes(partial.read_bytes(), paths))
    partial.replace(path)


def translate(text: str, paths: Mapping[str, str]) -> str:
    """Return a text with paths replaced, also inside JSON and where several have commas between.

    A path is replaced where it stands alone or begins a longer path.
    """
    forms = {json.dumps(old)[1:-1]: json.dumps(new)[1:-1] for old, new in paths.items()}
    forms.update(paths)
    if not forms:
        return text
    longest_first = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    pattern = rf"(?<![^\s\"',=:])(?:{longest_first})(?![^\s\"',:/])"
    return re.sub(pattern, lambda match: forms[match[0]], text)


def translate_bytes(content: bytes, paths: Mapping[str, str]) -> bytes:
    """Return the content of a text file with paths replaced."""
    text = content.decode("utf-8", "surrogateescape")
    return translate(text, paths).encode("utf-8", "surrogateescape")


def translate_config(config: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return options with paths replaced in texts."""
    return {
        name: translate(value, paths) if isinstance(value, str) else value
        for name, value in config.items()
    }


def collect(directory: Path, keep: str, paths: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files below a directory by relative path, hidden ones (temporary ones) left out.

    Args:
        directory: the directory.
        keep: regular expression of the relative paths of the files wanted.
        paths: paths to replace in them.
    """
    return {
        name: translate_bytes(path.read_bytes(), paths)
        if name.endswith(TEXT)
        else path.read_bytes()
        for name, path in files_below(directory, keep).items()
    }


def install(files: Mapping[str, bytes], out: Path, last: str, overwrite: bool) -> None:
    """Write files that came back below ``out``, each atomically, those of ``last`` at the end.

    A directory that is not there yet, below those of the files of ``last``, appears whole. A file
    of ``last`` that is there already stays, unless it is to be overwritten: another driver wrote
    it, and each is written once.
    """
    finishing = [name for name in files if re.fullmatch(last, name)]
    level = min((name.count("/") for name in finishing), default=0)
    whole: dict[str, dict[str, bytes]] = {}
    for name in files.keys() - set(finishing):
        parent = name.rpartition("/")[0]
        if name.count("/") > level and not (out / parent).exists():
            whole.setdefault(parent, {})[name] = files[name]
        else:
            _write_changed(out / name, files[name])
    for parent in sorted(whole, reverse=True):  # a directory comes after those inside it
        _install_directory(out, parent, whole[parent])
    for name in finishing:
        if overwrite or not (out / name).exists():
            write_atomically(out / name, files[name])


def _install_directory(out: Path, parent: str, files: Mapping[str, bytes]) -> None:
    if (out / parent).exists():
        for name, content in files.items():
            _write_changed(out / name, content)
        return
    with atomic_directory(out / parent) as directory:
        for name, content in files.items():
            (directory / Path(name).name).write_bytes(content)


def _write_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def file_hash(path: Path) -> str:
    """Return sha256 of a file, read once per process unless its size or time changes."""
    status = path.stat()
    return _file_hash(str(path), status.st_size, status.st_mtime_ns)


@functools.cache
def _file_hash(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_version() -> str:
    """Return the version of this package that is installed here."""
    return metadata.version("sat-interp")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
