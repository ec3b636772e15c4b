"""One streaming pass over a text that gathers the excerpts of all units of all layers.

``excerpts.py`` describes what is gathered. The pass is cached by everything that determines it (the
model's weights and shape, the tokens, the units, the configuration), so that ``neurons`` and
``n2g`` share one; an interrupted pass is resumed at its last saved batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.excerpts import (
    HALVES,
    SPARE,
    ExcerptTable,
    GatherConfig,
    Gathered,
    Half,
    Statistics,
    Stories,
    near_duplicates,
    story_words,
)
from evaluations.core.record import hash_of
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.units import Units
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_file, default_cache
from sat_interp.data.batches import StoryBatch, story_batches

FORMAT = 2
BATCH_TOKENS = 2048
BUFFER_BYTES = 1 << 27
"""Bytes of activations in memory at once, in float32."""
TIE = 2.0**-40
"""Relative difference that separates equal peaks: far below the precision of float32."""
SAVE_EVERY = 60.0
"""Seconds between two saves of a pass."""

log = logging.getLogger(__name__)


@dataclass
class _LayerState:
    """The excerpts and sums of one layer so far."""

    kept: dict[Half, dict[str, ExcerptTable]]
    maximum: Tensor
    total: Tensor
    fired: Tensor

    def count(self, values: Float[Tensor, "tokens units"]) -> None:
        """Add tokens to the statistics."""
        if values.dtype == torch.bfloat16:  # in which 257 is 256
            values = values.float()
        # sums within a batch in the values' own precision: in float64 they cost ten times as much
        self.total += values.sum(0).double()
        self.fired += torch.gt(values, 0, out=torch.empty_like(values)).sum(0).long()


@dataclass
class _PassState:
    """The excerpts and sums of a pass so far."""

    layers: dict[int, _LayerState]
    width: int
    batches: int = 0
    tokens: int = 0

    @classmethod
    def begin(cls, units: Units, config: GatherConfig) -> _PassState:
        """Return the state of a pass that has read nothing."""
        sizes = {"top": int(SPARE * config.top), "sample": config.sample, "random": config.random}
        layers = {}
        for layer, count in zip(units.layers, units.sizes, strict=True):
            kept = {
                half: {
                    kind: ExcerptTable.empty(keep, count, config.width)
                    for kind, keep in sizes.items()
                }
                for half in HALVES
            }
            layers[layer] = _LayerState(
                kept,
                torch.full((count,), -torch.inf),
                torch.zeros(count, dtype=torch.float64),
                torch.zeros(count, dtype=torch.int64),
            )
        return cls(layers, config.width)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        tensors: dict[str, Tensor] = {}
        for number, layer in self.layers.items():
            for name in ("maximum", "total", "fired"):
                tensors[f"{number}.{name}"] = getattr(layer, name)
            for half, kinds in layer.kept.items():
                for kind, kept in kinds.items():
                    for name in ("scores", "stories", "starts", "activations"):
                        tensors[f"{number}.{half}.{kind}.{name}"] = getattr(kept, name)
        return tensors

    def save(self, path: Path, done: bool) -> None:
        """Write the state, whole or not at all."""
        counts = {"batches": str(self.batches), "tokens": str(self.tokens), "done": str(int(done))}
        with atomic_file(path) as temporary:  # straight from memory: it may be gigabytes
            save_file(self.tensors(), temporary, metadata=counts)

    def restore(self, path: Path) -> bool:
        """Read the state from a file, and return whether the pass is complete.

        Raises:
            _DamagedError: the file cannot be read.
        """
        try:
            with safe_open(path, "pt") as file:
                counts = file.metadata()
                for name, tensor in self.tensors().items():
                    tensor.copy_(file.get_tensor(name))
                self.batches, self.tokens = int(counts["batches"]), int(counts["tokens"])
                return bool(counts["done"] == "1")
        except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
            log.warning("%s cannot be read (%s); gathered again", path.name, error)
            raise _DamagedError from None


class _DamagedError(Exception):
    """A cached pass that cannot be read."""


def gather(
    model: HookedTransformer,
    text: Text,
    units: Units,
    config: GatherConfig,
    model_key: str,
    cache: Path | None = None,
) -> Gathered:
    """Return the excerpts and statistics of all units, from the cache or by a pass over the text.

    Args:
        model: to read the activations of.
        text: in the model's tokens.
        units: whose excerpts are gathered.
        config: which excerpts are kept.
        model_key: hash of the model's weights and of everything else that determines its
            activations (``runner.model_key``).
        cache: directory of cached passes; by default ``activations`` in the cache of the package.

    Raises:
        UserError: tokens the model does not know, no text, or activations that are not finite.
    """
    check_vocabulary(model, text)
    directory = cache or default_cache() / "activations"
    key = hash_of(
        {
            "format": [FORMAT, SPARE, TIE],
            "model": model_key,
            "text": text.content,
            "context": int(model.cfg.n_ctx),
            "dtype": str(model.W_E.dtype),
            "units": units.describe(),
            "config": asdict(config),
        }
    )
    path = directory / f"{key}.safetensors"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        state, done = _restored(path, units, config)
        words = story_words(text, config.seed)
        if not done:
            _run(model, text, units, words, state, path)
    return _gathered(text, config, state, words)


def _restored(path: Path, units: Units, config: GatherConfig) -> tuple[_PassState, bool]:
    """Return the state in the cache, or that of a new pass, and whether the pass is complete."""
    state = _PassState.begin(units, config)
    if not path.exists():
        return state, False
    try:
        return state, state.restore(path)
    except _DamagedError:
        return _PassState.begin(units, config), False


@torch.inference_mode()
def _run(
    model: HookedTransformer,
    text: Text,
    units: Units,
    words: np.ndarray,
    state: _PassState,
    path: Path,
) -> None:
    """Read the rest of the text, and save the state."""
    was_training = model.training
    model.eval()
    context = int(model.cfg.n_ctx)
    copies = np.ones(len(words), dtype=bool)
    copies[np.unique(words, return_index=True)[1]] = False
    total = int(text.scored(context).sum())
    saved = time.monotonic()
    buffers: dict[int, Tensor] = {}
    with progress.bar(total=total, desc="activations", unit="tok", initial=state.tokens) as bar:
        for batches in _together(text, context, state.batches, sum(units.sizes)):
            state.tokens += _read(model, units, state, batches, words, copies, buffers)
            state.batches += len(batches)
            bar.update(_tokens(batches))
            if time.monotonic() - saved > SAVE_EVERY:
                state.save(path, done=False)
                saved = time.monotonic()
    model.train(was_training)
    if not state.tokens:
        raise UserError("the text holds no token: there is nothing to read activations on")
    state.save(path, done=True)


def _together(text: Text, context: int, first: int, units: int) -> Iterator[list[StoryBatch]]:
    """Yield the batches from number ``first`` on in groups, so that fewer searches are needed."""
    room = max(BATCH_TOKENS, BUFFER_BYTES // (4 * units))
    waiting: list[StoryBatch] = []
    for batch in islice(story_batches(text.corpus, context, BATCH_TOKENS), first, None):
        if waiting and _tokens([*waiting, batch]) > room:
            yield waiting
            waiting = []
        waiting.append(batch)
    if waiting:
        yield waiting


def _tokens(batches: list[StoryBatch]) -> int:
    """Return the tokens of stories, without the one before each and the one after it."""
    return sum(len(batch.index) * (batch.tokens.shape[1] - 2) for batch in batches)


def _read(
    model: HookedTransformer,
    units: Units,
    state: _PassState,
    batches: list[StoryBatch],
    words: np.ndarray,
    copies: np.ndarray,
    buffers: dict[int, Tensor],
) -> int:
    """Run the model on batches, keep what is to be kept, and return their number of tokens.

    Args:
        model: to read.
        units: to read of it.
        state: to be updated.
        batches: of stories.
        words: the random word of each story.
        copies: which stories repeat one before them.
        buffers: memory for the activations of each layer, allocated here and reused.
    """
    batches = [batch for batch in batches if batch.tokens.shape[1] > 2]
    total, filled = _tokens(batches), 0
    peaks: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in units.layers}
    for batch in batches:
        tokens = batch.tokens[:, :-1].to(model.W_E.device)
        for layer, activations in units.read(model, tokens).items():
            values = activations[:, 1:].cpu()
            flat = values.flatten(0, 1)
            if layer not in buffers or len(buffers[layer]) < total:
                buffers[layer] = flat.new_empty((total, flat.shape[1]))
            buffers[layer][filled : filled + len(flat)] = flat
            state.layers[layer].count(flat)
            parts = [part.amax(1) for part in torch.split(values, state.width, dim=1)]
            best, place = torch.stack(parts).max(0)  # each (batch, units)
            peaks[layer].append((best, place * state.width))
        filled += len(flat)
    if not total:
        return 0
    numbers = torch.cat([batch.index for batch in batches])
    lengths = torch.cat(
        [torch.full_like(batch.index, batch.tokens.shape[1] - 2) for batch in batches]
    )
    for layer, parts_of_layer in peaks.items():
        stories = Stories(numbers, lengths.cumsum(0) - lengths, lengths, buffers[layer][:total])
        best, starts = (torch.cat(part) for part in zip(*parts_of_layer, strict=True))
        if not best.isfinite().all():
            raise UserError(f"the model's activations in layer {layer} are not finite (NaN)")
        own = numbers.numpy()
        _take(state.layers[layer], stories, best, starts, words[own], copies[own], state.width)
    return total


def _take(
    layer: _LayerState,
    stories: Stories,
    best: Float[Tensor, "batch units"],
    starts: Int[Tensor, "batch units"],
    words: np.ndarray,
    copies: np.ndarray,
    width: int,
) -> None:
    """Keep what is to be kept of stories; sample and random excerpts take one of several copies.

    Args:
        layer: to be updated.
        stories: with their activations.
        best: peak of each story's best excerpt for each unit.
        starts: where that excerpt begins.
        words: the stories' random words; equal for copies.
        copies: which stories repeat one before them.
        width: tokens of an excerpt.
    """
    layer.maximum = torch.maximum(layer.maximum, best.amax(0).float())
    key = torch.from_numpy(_keys(words))[:, None].expand_as(best)
    # of equal peaks that of the higher key: stories that begin alike have the same peak
    scores = (best.double() * (1 + TIE * key)).where(best > 0, -torch.inf)
    eligible = (best > 0) & torch.from_numpy(~copies)[:, None]
    for number, half in enumerate(HALVES):
        rows = torch.from_numpy(words % 2 == number)
        if not rows.any():
            continue
        kept, some = layer.kept[half], stories.of(rows)
        kept["top"].offer(scores[rows], some, starts[rows])
        kept["sample"].offer(key[rows].where(eligible[rows], -torch.inf), some, starts[rows])
        once = rows & torch.from_numpy(~copies)
        if once.any():
            _take_random(kept["random"], words[once.numpy()], stories.of(once), width)


def _take_random(kept: ExcerptTable, words: np.ndarray, stories: Stories, width: int) -> None:
    """Keep the stories of the lowest keys, each with an excerpt at random, for all units alike.

    A sample keeps the highest keys, so that the two share as few stories as possible.
    """
    key = torch.from_numpy(-_keys(words))
    wanted = key > kept.scores.amin() if len(kept.scores) else torch.zeros_like(key).bool()
    if not wanted.any():
        return
    anywhere = torch.from_numpy(_keys(words * np.uint64(0x9E3779B97F4A7C15)))
    excerpts = (stories.lengths + width - 1) // width
    begin = (anywhere * excerpts).long() * width
    alike = (-1, stories.values.shape[1])
    kept.offer(
        key[wanted, None].expand(alike), stories.of(wanted), begin[wanted, None].expand(alike)
    )


def _keys(words: np.ndarray) -> Float[np.ndarray, " stories"]:
    """Return the words as numbers in [0, 1), without their lowest bits."""
    return (words >> np.uint64(11)) * 2.0**-53


def _gathered(text: Text, config: GatherConfig, state: _PassState, words: np.ndarray) -> Gathered:
    """Return what a pass has kept, in order; the state is emptied, layer by layer."""
    kept: dict[int, dict[Half, dict[str, ExcerptTable]]] = {}
    statistics: dict[int, Statistics] = {}
    for number in list(state.layers):
        layer = state.layers.pop(number)
        kept[number] = {
            half: {kind: table.ordered() for kind, table in kinds.items()}
            for half, kinds in layer.kept.items()
        }
        for kinds in kept[number].values():
            distinct = ~near_duplicates(text, kinds["top"]) & (kinds["top"].stories >= 0)
            kinds["top"] = kinds["top"].keep_only(distinct, config.top)
        mean, share = layer.total / state.tokens, layer.fired / state.tokens
        statistics[number] = Statistics(layer.maximum, mean.float(), share)
    sides: dict[Half, int] = {
        half: int((words % 2 == number).sum()) for number, half in enumerate(HALVES)
    }
    return Gathered(text, config, kept, statistics, state.tokens, sides)
