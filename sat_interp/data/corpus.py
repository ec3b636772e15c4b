"""Stories as one stream of tokens in a memory map, built once and cached by its content.

The stream is story 0, ``<|endoftext|>``, story 1, ``<|endoftext|>``, ... A corpus lies in
``<cache>/<name>-<split>-<hash>/``; the hash covers the text, the tokenizer and the limit, so other
data never meets an old map, and renamed data finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int64
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sat_interp._util.errors import UserError, shown
from sat_interp._util.files import atomic_directory, default_cache
from sat_interp._util.progress import bar
from sat_interp.data.base import DataSource, Split, sha256
from sat_interp.data.pieces import encode
from sat_interp.data.tokenizer import fingerprint, id_count, story_start, unknown_ids

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# One batch for the tokenizer's threads: work enough for many cores, some tens of megabytes.
_BATCH_STORIES = 2_000
_BATCH_CHARACTERS = 1_000_000
# Stories whose tokens are decoded again, to see whether the tokenizer keeps their text.
_CHECKED_STORIES = 10_000
_FILES = ("tokens.bin", "offsets.npy", "story_bytes.npy")


@dataclass(frozen=True)
class TokenCorpus:
    """A tokenised split.

    Attributes:
        directory: where it is stored.
        tokens: the stream, a read-only memory map of uint16 (uint32 for ids above 65,535).
        offsets: int64 (n_stories + 1); ``tokens[offsets[i]:offsets[i + 1]]`` is story i with its
            closing end-of-text token.
        story_bytes: int64 (n_stories); the length of each story's text in UTF-8.
        meta: what it was made of, ``n_tokens``, ``n_stories``, ``n_empty`` (stories skipped),
            ``end_of_text`` (its id), ``vocab_size`` (largest id plus one), ``tokenizer`` (its
            fingerprint), ``text`` (sha256 of the stories' bytes), ``n_unknown`` (tokens for text
            the tokenizer does not know), and of how many of the first stories (``n_checked``) the
            tokens do not decode to the text (``n_lossy``).
        start_token: id of the token that stands before a story when it is read on its own (see
            ``tokenizer.story_start``); end-of-text where None. It is not part of the stream.
    """

    directory: Path
    tokens: np.ndarray
    offsets: np.ndarray
    story_bytes: np.ndarray
    meta: dict[str, Any]
    start_token: int | None = None

    def __len__(self) -> int:
        """The number of stories."""
        return len(self.story_bytes)

    @property
    def end_of_text(self) -> int:
        """The id of the token that closes every story."""
        return int(self.meta["end_of_text"])

    @property
    def start(self) -> int:
        """The id of the token that stands before a story when it is read on its own."""
        return self.end_of_text if self.start_token is None else self.start_token

    def story(self, i: int) -> np.ndarray:
        """The tokens of story i, without the end-of-text token."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"story {i} of {len(self)}")
        i %= len(self)
        return self.tokens[self.offsets[i] : self.offsets[i + 1] - 1]

    def first_tokens(self, stories: np.ndarray) -> np.ndarray:
        """The token that stands before each of some stories: int64 (stories)."""
        return np.full(len(stories), self.start, dtype=np.int64)

    def take(self, stories: np.ndarray) -> TokenCorpus:
        """Some of the stories, in the order given, copied into memory."""
        parts = [self.tokens[self.offsets[story] : self.offsets[story + 1]] for story in stories]
        lengths = np.diff(np.asarray(self.offsets, dtype=np.int64))[stories]
        return replace(
            self,
            tokens=np.concatenate([*parts, self.tokens[:0]]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            story_bytes=np.asarray(self.story_bytes)[stories],
        )

    def windows(
        self, *, seed: int, step: int, batch: int, length: int
    ) -> Int64[Tensor, "batch length"]:
        """Windows of ``length`` tokens, each starting anywhere in the stream with equal chance.

        A pure function of its arguments, whatever was drawn before: row r depends on (seed, step,
        r) alone. So a resumed run sees what it would have seen, and a larger batch of the same
        step begins with the rows of a smaller one.

        Raises:
            UserError: the stream is shorter than ``length``.
        """
        places = len(self.tokens) - length + 1
        if places < 1:
            raise UserError(
                f"the data holds {len(self.tokens):,} tokens, fewer than one window of {length:,}:"
                " use more text or a shorter context"
            )
        # Raw Philox words, not Generator.integers: their stream is promised never to change, and
        # a draw never takes more than one word. 53 bits place a window to the token.
        key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
        words = np.random.Philox(key=key).random_raw(batch)
        starts = ((words >> np.uint64(11)) * 2.0**-53 * places).astype(np.int64)
        rows = self.tokens[starts[:, None] + np.arange(length)]
        return torch.from_numpy(rows.astype(np.int64))


def load_corpus(
    source: DataSource,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path | None = None,
    limit: int | None = None,
) -> TokenCorpus:
    """Open the tokenised split, tokenising it first where that was not done yet.

    Tokenising runs on all cores (unless ``TOKENIZERS_PARALLELISM=false``), holds a few thousand
    stories at a time and leaves the whole corpus or none. A damaged map is built again; of
    two processes that want the same one, the second waits for the first. ``limit`` is the most
    stories to take. ``cache_dir`` is ``$SAT_INTERP_CACHE`` or ``~/.cache/sat_interp`` by default.

    Raises:
        UserError: the data cannot be read, or holds no text.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} stories leaves no data: use 1 or more")
    if limit is not None and limit >= 2**63:
        raise UserError(f"a limit of {shown(limit)} stories is too large: use a number below 2^63")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token: load it by load_tokenizer")
    identity = _identity(source, split, tokenizer, limit)
    key = _key(identity)
    root = default_cache() if cache_dir is None else Path(cache_dir)
    directory = root / f"{_slug(source.name)}-{split}-{key}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{directory.name}.lock"):
        corpus = _open(directory)
        if corpus is None:
            for left in root.glob(f".{directory.name}.*.tmp"):
                # left by a killed process: this one holds the lock
                shutil.rmtree(left, ignore_errors=True)
            described = {**identity, "data": source.spec, "split": split}
            with atomic_directory(directory) as temporary:
                _build(temporary, source, split, tokenizer, described)
            corpus = _open(directory)
    if corpus is None:
        raise OSError(f"{directory} does not read back as it was written: is the disk damaged?")
    return replace(corpus, start_token=story_start(tokenizer))


def count_tokens(
    source: DataSource, split: Split, tokenizer: PreTrainedTokenizerFast, enough: int
) -> int:
    """Return the length of a split's stream of tokens, counted no further than past ``enough``.

    Nothing is kept.

    Raises:
        UserError: the data cannot be read.
    """
    backend, total = _plain_backend(tokenizer), 0
    for batch in _batches(_Counter(source.texts(split))):
        total += sum(len(ids) + 1 for ids in encode(backend, batch, _BATCH_CHARACTERS))
        if total >= enough:
            break
    return total


def corpus_key(
    source: DataSource, split: Split, tokenizer: PreTrainedTokenizerFast, limit: int | None = None
) -> str:
    """Hash of the text, the tokenizer and the limit: how the directory's name of a corpus ends.

    Nothing is tokenised.

    Raises:
        UserError: the data cannot be read.
    """
    return _key(_identity(source, split, tokenizer, limit))


def _identity(
    source: DataSource, split: Split, tokenizer: PreTrainedTokenizerFast, limit: int | None
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "content": source.content_id(split),
        "limit": limit,
        "tokenizer": fingerprint(tokenizer),
    }


def _key(identity: dict[str, Any]) -> str:
    return sha256(json.dumps(identity, sort_keys=True))[:16]


def _build(
    directory: Path,
    source: DataSource,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    identity: dict[str, Any],
) -> None:
    backend = _plain_backend(tokenizer)
    end_of_text = tokenizer.eos_token_id
    dtype = np.dtype("<u2" if id_count(tokenizer) <= 2**16 else "<u4")
    texts = _Counter(islice(source.texts(split), identity["limit"]))
    kept = _Kept(backend, tokenizer)
    lengths: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    progress = bar(desc=f"tokenising {split}", unit=" stories")
    with progress, open(directory / "tokens.bin", "wb") as file:
        for batch in _batches(texts):
            encoded = encode(backend, batch, _BATCH_CHARACTERS)
            kept.add(batch, encoded)
            stories = [[*ids, end_of_text] for ids in encoded]
            file.write(np.concatenate([np.array(story, dtype=dtype) for story in stories]).data)
            lengths.append(np.array([len(story) for story in stories], dtype=np.int64))
            sizes.append(np.array([len(text.encode()) for text in batch], dtype=np.int64))
            progress.update(len(batch))
    if not lengths:
        raise UserError(f"data {source.spec!r} has no text for {split}: check files and column")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype("<i8")
    story_bytes = np.concatenate(sizes).astype("<i8")
    np.save(directory / "offsets.npy", offsets)
    np.save(directory / "story_bytes.npy", story_bytes)
    meta = {
        **identity,
        "dtype": dtype.name,
        "n_tokens": int(offsets[-1]),
        "n_stories": len(story_bytes),
        "n_empty": texts.empty,
        **kept.described(),
        "end_of_text": end_of_text,
        "vocab_size": id_count(tokenizer),
        "crc32": {name: _crc32(directory / name) for name in _FILES},
    }
    (directory / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    logger.info("tokenised %s stories, %s tokens", meta["n_stories"], meta["n_tokens"])


class _Counter:
    """Passes on the stories that hold text and counts the others."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.empty = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if text.strip():
                yield text
            else:
                self.empty += 1


class _Kept:
    """Statistics of tokenising: a hash of the text, unknown tokens, stories that change."""

    def __init__(self, backend: Tokenizer, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend, self.unknown_ids = backend, unknown_ids(tokenizer)
        self.digest = hashlib.sha256()
        self.unknown = self.checked = self.lossy = 0

    def add(self, texts: list[str], ids: list[list[int]]) -> None:
        for text in texts:
            content = text.encode()
            self.digest.update(len(content).to_bytes(8, "little") + content)
        for known in self.unknown_ids:
            self.unknown += sum(story.count(known) for story in ids)
        some = max(0, _CHECKED_STORIES - self.checked)
        decoded = self.backend.decode_batch(ids[:some], skip_special_tokens=False)
        # a space before the story is SentencePiece's own
        pairs = zip(texts, decoded, strict=False)
        self.lossy += sum(text not in (item, item.removeprefix(" ")) for text, item in pairs)
        self.checked += len(decoded)

    def described(self) -> dict[str, Any]:
        return {
            "text": self.digest.hexdigest(),
            "n_unknown": self.unknown,
            "n_checked": self.checked,
            "n_lossy": self.lossy,
        }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of stories: up to 2,000, and closed once they hold a million characters."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) >= _BATCH_STORIES or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that neither pads nor cuts, and takes ``<|endoftext|>`` in a story for plain text.

    Else a story that quotes the mark would fall in two, and the stream would hold more ends than
    stories.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _open(directory: Path) -> TokenCorpus | None:
    """The corpus in ``directory``; None where it is missing, cut short or altered."""
    if not directory.exists():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, EOFError):
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        checksums = meta["crc32"] if "text" in meta else {}
        if all(_crc32(directory / name) == checksums[name] for name in _FILES):
            return TokenCorpus(
                directory=directory,
                tokens=np.memmap(directory / "tokens.bin", dtype=meta["dtype"], mode="r"),
                offsets=np.load(directory / "offsets.npy"),
                story_bytes=np.load(directory / "story_bytes.npy"),
                meta=meta,
            )
    logger.warning("%s is damaged, or of an older version: building it again", directory)
    return None


def _crc32(path: Path) -> int:
    """The checksum of a file, read in pieces (about a gigabyte a second)."""
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 16):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:40].strip(".-") or "data"
