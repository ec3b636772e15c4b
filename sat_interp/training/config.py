"""All settings of ``sat-train``, and the presets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sat_interp._util.errors import UserError, suggest
from sat_interp._util.settings import check_sizes
from sat_interp.model.config import SelfAblationConfig
from sat_interp.training.schedule import Schedule, read_schedule

Precision = Literal["float32", "bf16"]
StoredPrecision = Literal["float32", "float16"]
Freeze = Literal["none", "base"]


@dataclass
class TrainConfig(SelfAblationConfig):
    """A training run: the gates (inherited), the shape, the data, the optimisation, the machine.

    The defaults are the preset ``demo``; :meth:`from_preset` gives any other.

    Raises:
        UserError: a value that is not possible (a size below 1, a learning rate of NaN, ...).
    """

    preset: str = "demo"
    """Set of defaults: demo, tinystories-3m (the paper's Table 3), fine-tune (with init), or those
    of the bundled models: builtin-baseline, builtin-local-k4, builtin-global-k4, builtin-facts,
    builtin-numbers."""

    init: str | None = None
    """Pretrained model to begin from: a directory or hub id of transformers, a .gguf file, a run of
    sat-train, or demo:baseline. Its sizes and its tokenizer are kept, and gates are added."""

    n_layers: int | None = None
    """Number of blocks."""

    d_model: int | None = None
    """Width of the residual stream."""

    n_heads: int | None = None
    """Attention heads per block; d_model must be divisible by it."""

    d_mlp: int | None = None
    """Neurons per block; 4 * d_model by default."""

    n_ctx: int = 192
    """Context in tokens. Training windows have n_ctx inputs and n_ctx targets."""

    d_vocab: int | None = None
    """Rows of the embedding; the tokenizer's size by default."""

    initializer_range: float = 0.07
    """Standard deviation of the initial weights (GPT-Neo's own is 0.02). With init, of the gates'
    weights; by default what that model states."""

    embedding_range: float | None = 0.15
    """Standard deviation of the initial token and position embeddings; initializer_range by
    default. With small ones attention takes long to distinguish names."""

    data: str = "demo"
    """demo (the built-in corpus), tinystories or any Hugging Face dataset (name:column), or local
    .txt, .jsonl, .jsonl.gz, .parquet files, several with commas between them."""

    validation: str | None = None
    """Data to validate on, written as data is; by default the data's own validation split, or one
    story in a hundred, held out by a hash of its text."""

    tokenizer: str | None = None
    """gpt2 (needs no network), bpe:N (N tokens, trained on the data), or a directory. With init,
    that model's own by default."""

    steps: int = 500
    """Optimiser steps; the cosine schedule ends at 0 after the last."""

    batch_size: int = 6
    """Windows per process and micro-batch."""

    accumulate: int = 1
    """Micro-batches per optimiser step; their gradients are averaged."""

    learning_rate: float = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""

    gate_learning_rate: float | None = None
    """Peak learning rate of the gates' weights; learning_rate by default."""

    freeze: Freeze = "none"
    """base: with init, only the gates are trained, and the model stays as it was."""

    warmup_steps: int = 0
    """Steps of linear warm-up before the cosine."""

    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""

    beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""

    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on every parameter."""

    clip_norm: float = 1.0
    """Largest global gradient norm; 0 never clips."""

    clean_weight: float = 1.0
    """Weight of the clean stream's cross-entropy in the loss."""

    ablated_weight: float | str = 1.0
    """Weight of the ablated stream's cross-entropy: a number, or a ramp of WEIGHT@SHARE points.
    0.03@0.65:1.0@0.95 is 0.03 until 65 % of the steps, then rises linearly to 1.0 at 95 %."""

    reconstruction_weight: float = 0.0
    """Weight of the distance between the two streams (the released code's third term)."""

    hold_weight: float = 0.0
    """With init, weight of the divergence KL(initial model || clean stream) in the loss."""

    weight_density: float = 1.0
    """Share of the entries of each weight matrix, embedding and bias that are not 0: after every
    step the largest are kept (Gao et al. 2025). It falls from 1 over the first half of the steps.
    Layer norms and gates stay dense."""

    validate_every: int = 250
    """Steps between validations on the whole split; 0: only at the end."""

    checkpoint_every: int = 125
    """Steps between exact checkpoints (the last two are kept); 0: only at the end."""

    log_every: int = 20
    """Steps between lines of log.jsonl; each is the mean of the steps since the one before."""

    device: str = "auto"
    """cpu, a torch device, or auto: the accelerator where there is one."""

    precision: Precision = "float32"
    """float32, or bf16: products in bfloat16 (autocast), weights and optimiser in float32."""

    stored_precision: StoredPrecision = "float32"
    """Type in which the weights of model/ and best/ are stored; float16 halves the files.
    Checkpoints stay exact."""

    compile: bool = False
    """Compile the loss with torch.compile; if that fails, training continues without it."""

    gradient_checkpointing: bool = False
    """Compute each block's activations again for its gradient and do not keep them: in far less
    memory, about a third slower. It changes no result."""

    seed: int = 0
    """Seed of the initial weights, the windows and random gates."""

    out: str | None = None
    """Directory of the run."""

    resume: bool = False
    """Continue the run in out; start it if the directory is empty."""

    match_perplexity: float | None = None
    """Validation perplexity (clean) that the run is to reach: the same recipe with a shorter,
    complete schedule, whose length (at most steps) is searched by shorter runs."""

    match_of: str | None = None
    """Model of that perplexity, such as local-k4, for the run's records, so that baselines matched
    to different models are told apart; it does not affect training."""

    match_tolerance: float = 0.01
    """Largest relative difference from match_perplexity."""

    match_runs: int = 12
    """Largest number of runs in the search."""

    wandb: str | None = None
    """Weights & Biases project to log to (needs the extra: pip install 'sat-interp[wandb]')."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is None:
            for name, value in FRESH.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        if self.preset not in PRESETS:
            raise UserError(suggest("preset", self.preset, PRESETS))
        for names, is_right, wanted in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_right(value):
                    raise UserError(f"{name} must be {wanted}, not {value}")
        check_sizes(self.sizes)
        schedule = self.ablated_schedule
        self.ablated_weight = schedule.canonical()  # one identity for one schedule
        if not (self.clean_weight or self.reconstruction_weight or schedule.lowest):
            raise UserError(
                "loss weights must not all be 0: raise clean_weight, reconstruction_weight or "
                f"ablated_weight ({self.ablated_weight})"
            )
        if self.warmup_steps >= self.steps:
            raise UserError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        self._check_init()

    def _check_init(self) -> None:
        """Refuse what needs an initial model without one, and a frozen one without gates."""
        if self.init is None:
            if self.freeze != "none" or self.hold_weight or self.preset == FINE_TUNE:
                raise UserError(
                    "freeze base, hold_weight and preset fine-tune need a pretrained model: name "
                    "one with init"
                )
        elif not self.init.strip():
            raise UserError("init is empty: name a model")
        trains_gates = self.has_gate_weights and self.gates != "frozen"
        if self.freeze == "base" and not trains_gates:
            raise UserError(
                "freeze base trains the gates only, and there are none to train: choose variant "
                "local or global, with gates learned or detached"
            )
        if self.freeze == "base" and not (self.ablated_schedule.lowest or self.ablated_weight):
            raise UserError("freeze base needs the ablated stream's loss: raise ablated_weight")
        if self.freeze == "base" and (self.hold_weight or self.weight_density < 1):
            raise UserError(
                "freeze base keeps the clean stream as it is: leave hold_weight and weight_density "
                "out"
            )
        if self.gate_learning_rate is not None and not trains_gates:
            raise UserError("gate_learning_rate needs gates that are trained: choose a variant")

    @classmethod
    def from_preset(
        cls, preset: str | None = None, *, k: int | None = None, **settings: Any
    ) -> TrainConfig:
        """A preset with some settings changed; ``k`` is both k_attention and k_neurons.

        The preset is demo by default, and fine-tune for a model to begin from (``init``).

        For example ``TrainConfig.from_preset("demo", variant="local", k=4, out="runs/local")``.

        Raises:
            UserError: an unknown preset or setting, or a value that is not possible.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                raise UserError(suggest("setting", name, names))
        both = {} if k is None else {"k_attention": k, "k_neurons": k}
        from_model = settings.get("init") is not None
        return cls(**{**preset_settings(preset, from_model), **both, **settings})

    @property
    def ablation(self) -> SelfAblationConfig:
        """The gates alone, as the model takes them."""
        names = [field.name for field in dataclasses.fields(SelfAblationConfig)]
        return SelfAblationConfig(**{name: getattr(self, name) for name in names})

    @property
    def sizes(self) -> dict[str, int | None]:
        """The model's sizes, as far as they are given; d_mlp is 4 d_model by default."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": max(1, (self.d_model or 1) // (self.n_heads or 1)),
            "d_mlp": self.d_mlp or (self.d_model and 4 * self.d_model),
            "n_ctx": self.n_ctx,
            "d_vocab": self.d_vocab,
        }

    @property
    def ablated_schedule(self) -> Schedule:
        """The weight of the ablated stream over training."""
        return read_schedule("ablated_weight", self.ablated_weight)

    def ablated_weight_at(self, step: int) -> float:
        """Weight of the ablated stream's loss in step 0, 1, ..., steps - 1."""
        return self.ablated_schedule.at(step / self.steps)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1: linear warm-up, then a cosine to 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, without those of a later version that have their default.

        So a run that was started before such a setting existed is still the same run.
        """
        return {
            name: value
            for name, value in super().to_dict().items()
            if name not in _LATER or value != _LATER[name]
        }

    def identity(self) -> dict[str, Any]:
        """The settings that decide a run's outcome: what ``resume`` must find unchanged."""
        return {name: value for name, value in self.to_dict().items() if name not in _FREE}

    def hash(self) -> str:
        """16 hex digits of :meth:`identity`."""
        canonical = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


MOST = 1_000_000
"""Most windows of a batch and the like: they are held in memory at once."""
_COUNTS = ("batch_size", "accumulate", "log_every", "match_runs")
_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "n_ctx", "d_vocab", "steps")
_POSITIVE = (
    "learning_rate",
    "gate_learning_rate",
    "initializer_range",
    "embedding_range",
    "match_tolerance",
)
_NOT_NEGATIVE = (
    "warmup_steps",
    "weight_decay",
    "clip_norm",
    "clean_weight",
    "reconstruction_weight",
    "hold_weight",
    "validate_every",
    "checkpoint_every",
    "seed",
)
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    ((*_SIZES, *_COUNTS), lambda value: value >= 1, "at least 1"),
    (_COUNTS, lambda value: value <= MOST, f"at most {MOST:,}"),
    (_NOT_NEGATIVE, lambda value: 0 <= value < math.inf, ">= 0 and finite"),
    (_POSITIVE, lambda value: 0 < value < math.inf, "> 0 and finite"),
    (("beta1", "beta2"), lambda value: 0 <= value < 1, "in [0, 1)"),
    (("weight_density",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
    (("match_perplexity",), lambda value: 1 < value < math.inf, "> 1 and finite"),
)
"""Settings, the condition on their values, and the condition in words."""

# Settings that may differ in a resumed run: they affect no weight and no logged number.
_FREE = {
    "preset",
    "out",
    "resume",
    "wandb",
    "checkpoint_every",
    "match_of",
    "gradient_checkpointing",
}

FRESH = {"n_layers": 4, "d_model": 64, "n_heads": 4, "tokenizer": "bpe:2000"}
"""Defaults of a model with fresh weights; one that begins from another has that one's."""
FINE_TUNE = "fine-tune"
_OF_SHAPE = (*FRESH, "d_mlp", "d_vocab", "initializer_range", "embedding_range")

_LATER = {
    "weight_density": 1.0,
    "stored_precision": "float32",
    "init": None,
    "freeze": "none",
    "hold_weight": 0.0,
    "gate_learning_rate": None,
    "gradient_checkpointing": False,
}
"""Settings that runs of before may lack, and the value that they had in effect."""

# The models that ship were trained before near_ties existed: these presets train the same again.
_BUILTIN = {
    "steps": 5200,
    "warmup_steps": 100,
    "validate_every": 1300,
    "checkpoint_every": 1300,
    "near_ties": "detached_floor",
}
_PLANTED = {
    "n_ctx": 64,
    "batch_size": 16,
    "warmup_steps": 100,
    "validate_every": 0,
    "checkpoint_every": 1000,
}
_K4 = {"k_attention": 4, "k_neurons": 4}

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults above: two minutes on two cores at most, gates or not.
    "demo": {},
    # The same recipe until indirect objects are mastered: the models that ship (make
    # builtin-models).
    "builtin-baseline": _BUILTIN,
    # At the paper's weight of 1 the ablated stream holds the clean one back: with local gates it
    # had not begun to copy names after 4 M tokens. The released code's default is 0.1.
    "builtin-local-k4": {**_BUILTIN, **_K4, "variant": "local", "ablated_weight": 0.03},
    "builtin-global-k4": {**_BUILTIN, **_K4, "variant": "global", "ablated_weight": 0.1},
    # A pretrained model: small steps for its weights, larger ones for the fresh gates.
    FINE_TUNE: {"learning_rate": 1e-4, "warmup_steps": 20},
    # Planted facts, and years: what causal tracing and Greater-Than are tested on.
    "builtin-facts": {**_PLANTED, "data": "facts", "tokenizer": "bpe:3400", "steps": 10_000},
    "builtin-numbers": {
        **_PLANTED,
        "data": "numbers",
        "tokenizer": "bpe-years:1400",
        "steps": 7000,
    },
    # Self-Ablating Transformers (arXiv 2505.00509), Table 3, and GPT-Neo's initialisation.
    "tinystories-3m": {
        "n_layers": 8,
        "d_model": 128,
        "n_heads": 16,
        "d_mlp": 512,
        "n_ctx": 256,
        "initializer_range": 0.02,
        "embedding_range": None,
        "data": "tinystories",
        "tokenizer": "gpt2",
        "steps": 400_000,
        "batch_size": 24,
        "learning_rate": 1.4e-3,
        "warmup_steps": 0,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "validate_every": 10_000,
        "checkpoint_every": 1_000,
        "log_every": 100,
    },
}


def preset_settings(preset: str | None = None, from_model: bool = False) -> dict[str, Any]:
    """Settings of a preset that differ from TrainConfig's defaults, and its name.

    Args:
        preset: fine-tune by default for a model to begin from, else demo.
        from_model: the run begins from a model, whose shape is kept: none of a preset's.

    Raises:
        UserError: there is no such preset.
    """
    preset = preset or (FINE_TUNE if from_model else "demo")
    if preset not in PRESETS:
        raise UserError(suggest("preset", preset, PRESETS))
    if from_model:
        kept = {name: value for name, value in PRESETS[preset].items() if name not in _OF_SHAPE}
        return {"preset": preset, **kept}
    return {"preset": preset, **FRESH, **PRESETS[preset]}


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first setting two identities disagree on, as ``seed (0 there, 1 here)``."""
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name), new.get(name)
        if before != now:
            return f"{name} ({before!r} there, {now!r} here)"
    return None
