"""Where stories come from: the built-in corpus, local files, the Hugging Face hub.

``parse_data`` turns a ``--data`` argument into a ``DataSource``; nothing is read or downloaded
before its texts are iterated.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sat_interp._util.errors import UserError, shown
from sat_interp._util.files import expanded, files_below
from sat_interp.data import stories as grammar
from sat_interp.data.base import DataSource, SourceKind, sha256
from sat_interp.data.hub import DEFAULT_COLUMN, TINYSTORIES, HubSource, is_saved_dataset
from sat_interp.data.planted import CORPORA
from sat_interp.data.readers import EXTENSIONS, READER_VERSIONS, extension, read_stories

__all__ = ["DataSource", "DemoSource", "FilesSource", "HubSource", "file_names", "parse_data"]

DEMO_STORIES = 50_000
DEMO_VALIDATION_STORIES = 1_000
PLANTED_VALIDATION_TEXTS = 5_000
MOST_DIGITS = 12

_HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<config>[\w.-]+))?(:(?P<column>.+))?", re.ASCII
)
# Names that end so are meant as files, whether or not they exist.
_OTHER_FORMATS = {".json", ".csv", ".tsv", ".gz", ".zip", ".md", ".arrow", ".npy", ".bin", ".pdf"}
_VALIDATION_WORDS = ({"validation", "valid", "val", "dev"}, {"test"})


@dataclass(frozen=True)
class DemoSource(DataSource):
    """The built-in corpus: ``n_stories`` of it for training, 1,000 others for validation."""

    n_stories: int = DEMO_STORIES
    seed: int = 0

    @property
    def kind(self) -> SourceKind:
        """``demo``."""
        return "demo"

    @property
    def name(self) -> str:
        """``demo-50000``."""
        return f"demo-{self.n_stories}"

    def validation_part(self) -> str | None:
        """The grammar keeps stories for validation that it never gives to training."""
        return "validation"

    def read_part(self, part: str) -> Iterator[str]:
        """Generate the stories, one at a time."""
        split = "validation" if part == "validation" else "train"
        return islice(grammar.stories(split, self.seed), self._size(part))

    def hash_part(self, part: str) -> str:
        """Hash the grammar's version, the number of stories and the seed."""
        size = str(self._size(part))
        return sha256("demo", str(grammar.GRAMMAR_VERSION), part, size, str(self.seed))

    def _size(self, part: str) -> int:
        return DEMO_VALIDATION_STORIES if part == "validation" else self.n_stories


@dataclass(frozen=True)
class PlantedSource(DataSource):
    """A built-in corpus with something planted in it: ``facts`` or ``numbers``.

    ``n_texts`` texts are for training, and others, with sentences that training never holds, for
    validation.
    """

    corpus: str = "facts"
    n_texts: int = 0
    seed: int = 0

    @property
    def kind(self) -> SourceKind:
        """``planted``."""
        return "planted"

    @property
    def name(self) -> str:
        """``facts-300000``."""
        return f"{self.corpus}-{self.n_texts}"

    def validation_part(self) -> str | None:
        """The grammar keeps texts for validation that it never gives to training."""
        return "validation"

    def read_part(self, part: str) -> Iterator[str]:
        """Generate the texts, one at a time."""
        split = "validation" if part == "validation" else "train"
        return islice(CORPORA[self.corpus].texts(split, self.seed), self._size(part))

    def hash_part(self, part: str) -> str:
        """Hash the corpus' name and version, the number of texts and the seed."""
        version, size = CORPORA[self.corpus].version, str(self._size(part))
        return sha256(self.corpus, version, part, size, str(self.seed))

    def _size(self, part: str) -> int:
        return PLANTED_VALIDATION_TEXTS if part == "validation" else self.n_texts


@dataclass(frozen=True)
class FilesSource(DataSource):
    """Local files, read in their order; ``held_files`` are their own validation split, if any."""

    files: tuple[Path, ...] = ()
    held_files: tuple[Path, ...] = ()
    column: str = DEFAULT_COLUMN

    @property
    def kind(self) -> SourceKind:
        """``files``."""
        return "files"

    @property
    def name(self) -> str:
        """The first file's name."""
        return self.files[0].name

    def validation_part(self) -> str | None:
        """``held``, where a directory brought files named after validation."""
        return "held" if self.held_files else None

    def read_part(self, part: str) -> Iterator[str]:
        """Stream the stories of the files, one file after the other."""
        for path in self._paths(part):
            yield from read_stories(path, self.column)

    def hash_part(self, part: str) -> str:
        """Hash the files' bytes, their formats and the column; paths are not part of it."""
        hashes = [f"{_reading(path)} {_hash_of(path)}" for path in self._paths(part)]
        return sha256("files", "1", self.column, *hashes)

    def _paths(self, part: str) -> tuple[Path, ...]:
        return self.held_files if part == "held" else self.files


def parse_data(spec: str, validation: str | None = None) -> DataSource:
    """Read a ``--data`` argument.

    - ``demo`` or ``demo:N``: N training stories of the built-in corpus (50,000 by default);
    - ``facts`` or ``numbers``, ``facts:N``: N texts of a built-in corpus with planted facts, or
      with years;
    - ``tinystories``, or any Hugging Face dataset as ``name``, ``name:column`` or
      ``name@config:column`` (column ``text`` by default);
    - local .txt, .jsonl, .jsonl.gz or .parquet files, several with commas between them, or a
      directory of such, with ``:column`` behind where it is not ``text``. In a directory the
      files named after validation (``validation``, ``valid``, ``val``, ``dev``; else ``test``)
      are its validation split; a directory that ``datasets`` saved is read as such.

    ``validation`` is another such argument; its stories (or its own validation split, where it
    has one) are the validation split.

    Raises:
        UserError: a file does not exist or is of another kind, or the argument is not valid.
    """
    source = _parse(spec)
    if validation is None:
        return source
    held = _parse(validation)
    if isinstance(source, FilesSource) and isinstance(held, FilesSource):
        theirs = {path.resolve() for path in held.held_files or held.files}
        shared = [path for path in source.files if path.resolve() in theirs]
        if shared:
            raise UserError(f"{shared[0]} is both training and validation data: name another file")
    return dataclasses.replace(source, validation=held)


def file_names(spec: str) -> str:
    """A ``--data`` argument without the directories of its files, for records and cards.

    ``demo`` and names of datasets are left as they are; nothing needs to exist.
    """
    return _with_paths(spec, lambda path: os.path.basename(os.path.abspath(path)))


def absolute_paths(spec: str) -> str:
    """A ``--data`` argument that means the same files from any directory.

    ``demo`` and names of datasets are left as they are; so is a path in a directory whose name
    holds a comma, which parts files. Nothing needs to exist.
    """
    absolute = _with_paths(spec, os.path.abspath)
    return spec if absolute.count(",") > spec.count(",") else absolute


def files_of(spec: str) -> dict[Path, dict[str, Path]]:
    """The files of a ``--data`` argument, for a machine that does not have them.

    Returns:
        By each path in the argument, the files there by path relative to it, '' for a file itself;
        empty for ``demo`` and names of datasets.
    """
    named: list[Path] = []

    def noted(path: Path) -> str:
        named.append(path)
        return str(path)

    _with_paths(spec, noted)
    return {path: files_below(path) for path in named if path.exists()}


def _with_paths(spec: str, change: Callable[[Path], str]) -> str:
    """A ``--data`` argument with each path of a file changed, and its column kept."""
    spec = spec.strip()
    if spec.partition(":")[0] in ("demo", *CORPORA) or not _means_files(spec):
        return spec
    items = (_path_and_column(item.strip()) for item in spec.split(",") if item.strip())
    return ",".join(
        change(path) if column is None else f"{change(path)}:{column}" for path, column in items
    )


def _parse(spec: str) -> DataSource:
    spec = spec.strip()
    if not spec:
        raise UserError("no data given: use demo, tinystories, a dataset's name, or files")
    head, colon, tail = spec.partition(":")
    if head == "demo":
        return DemoSource(spec, n_stories=_story_count(spec, tail) if colon else DEMO_STORIES)
    if head in CORPORA:
        size = _story_count(spec, tail) if colon else CORPORA[head].n_texts
        return PlantedSource(spec, corpus=head, n_texts=size)
    if _means_files(spec):
        return _files(spec)
    match = _HUB_NAME.fullmatch(spec)
    if not match:
        raise UserError(
            f"data {spec!r} is not valid: use demo, tinystories, a Hugging Face dataset as"
            f" name:column, or {', '.join(EXTENSIONS)} files with commas between them"
        )
    name = TINYSTORIES if match["name"] == "tinystories" else match["name"]
    return HubSource(
        spec, dataset=name, config=match["config"], column=match["column"] or DEFAULT_COLUMN
    )


def _story_count(spec: str, count: str) -> int:
    if not (count.isascii() and count.isdigit() and count.strip("0")):
        head = spec.partition(":")[0]
        raise UserError(
            f"data {spec!r}: write a number of stories after '{head}:', as in {head}:50000"
        )
    if len(count) > MOST_DIGITS:
        raise UserError(f"data {shown(spec)}: that is not a possible number of stories")
    return int(count)


def _means_files(spec: str) -> bool:
    path, _ = _path_and_column(spec)
    return (
        "," in spec
        or path.exists()
        or extension(path) is not None
        or path.suffix.lower() in _OTHER_FORMATS
        or spec.startswith((".", "/", "~"))
        or spec.count("/") > 1
    )


def _path_and_column(item: str) -> tuple[Path, str | None]:
    """Part ``file:column``; a colon in the name of a file that exists is the name's own."""
    path = expanded(item)
    if path.exists() or ":" not in item:
        return path, None
    name, _, column = item.rpartition(":")
    return expanded(name), column


def _files(spec: str) -> DataSource:
    items = [_path_and_column(item.strip()) for item in spec.split(",") if item.strip()]
    columns = {column for _, column in items if column is not None}
    if len(columns) > 1:
        raise UserError(f"data {spec!r} names several columns: rename them, or use one source")
    column = next(iter(columns), DEFAULT_COLUMN)
    if len(items) == 1 and items[0][0].is_dir() and is_saved_dataset(items[0][0]):
        return HubSource(spec, dataset=str(items[0][0]), column=column)
    files: list[Path] = []
    held: list[Path] = []
    for path, _ in items:
        training, validation = _directory(path) if path.is_dir() else ([_file(path)], [])
        files += training
        held += validation
    if not files:
        raise UserError(f"data {spec!r} has no file to train on")
    return FilesSource(spec, files=tuple(files), held_files=tuple(held), column=column)


def _file(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if extension(path) is None:
        raise UserError(f"{path}: only {', '.join(EXTENSIONS)} files can be read")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: copy its content into one")
    return path


def _directory(directory: Path) -> tuple[list[Path], list[Path]]:
    """The files to train on and those to validate on, by their names, in alphabetical order."""
    files = sorted(path for path in files_below(directory).values() if extension(path) is not None)
    if not files:
        raise UserError(f"{directory} has no {', '.join(EXTENSIONS)} file")
    groups = [[path for path in files if _words(path) & words] for words in _VALIDATION_WORDS]
    training = [path for path in files if not any(path in group for group in groups)]
    if not training:
        raise UserError(f"every file in {directory} is named after validation: name the files")
    return training, groups[0] or groups[1]


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", path.name.lower()))


def _reading(path: Path) -> str:
    """How a file is read: its kind, and the reader's version where that is not the first."""
    kind = extension(path) or ""
    version = READER_VERSIONS[kind]
    return kind if version == 1 else f"{kind} {version}"


def _hash_of(path: Path) -> str:
    try:
        stat = path.stat()
        return _file_sha256(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error


@functools.lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified: int) -> str:
    """sha256 of a file's bytes, read once per process unless its size or time changes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
