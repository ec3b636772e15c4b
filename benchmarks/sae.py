"""Training an autoencoder: our loop, SAELens' own runner, and the floor of the loop's products.

    python -m benchmarks.sae                    # the paper's shape: about ten minutes on two cores
    python -m benchmarks.sae --cpu-time         # where other work shares the cores

All three train on, or stand for, the same HookedTransformer: 8 layers, d 128, 16 heads, the
autoencoder of Table 5 on ``blocks.6.hook_mlp_out``. A rate is taken between a short and a long
training, so that what is done once (set-up, the scale, the first filling of SAELens' buffer)
cancels. Ours, theirs and the floor take turns; the best of the rounds counts, for what else the
machine does only ever adds time. The floor is the products of the seven blocks with their weights
and of attention, and the autoencoder's five, each into memory that is there already.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
)

from evaluations.suite.sae.config import PRESETS, SaeConfig
from evaluations.suite.sae.train import train
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.data.corpus import TokenCorpus

VOCABULARY = 10_000
HOOK_LAYER = 6
BATCH = 4096
PROMPTS = 128  # of a buffer, for both: the paper's 1,024 would take SAELens minutes to fill
STORE = 16
THEIRS = "SAELens' runner"


def build() -> SelfAblatingTransformer:
    """The paper's shape, random weights."""
    torch.manual_seed(0)
    shape = gpt_neo_config(n_layers=8, d_model=128, n_heads=16, d_vocab=VOCABULARY, n_ctx=256)
    model = SelfAblatingTransformer(shape, SelfAblationConfig(variant="none")).eval()
    return model.requires_grad_(False)


def random_corpus(tokens: int = 2_000_000) -> TokenCorpus:
    """Random tokens: speed does not read them."""
    drawn = np.random.default_rng(0).integers(1, VOCABULARY, tokens).astype(np.uint16)
    return TokenCorpus(
        Path("random"), drawn, np.array([0, tokens]), np.array([tokens]), {"end_of_text": 0}
    )


def config(tokens: int) -> SaeConfig:
    """Table 5 on another budget, and with a smaller buffer."""
    return dataclasses.replace(
        PRESETS["paper"], tokens=tokens, buffer_prompts=PROMPTS, norm_batches=2
    )


def ours(model: SelfAblatingTransformer, corpus: TokenCorpus) -> Callable[[int], None]:
    """Our whole loop, files written and all."""

    def run(tokens: int) -> None:
        with tempfile.TemporaryDirectory() as out:
            target, state = Path(out) / "sae", Path(out) / "state"
            told = {"model_name": "benchmark"}
            train(model, corpus, {target: config(tokens)}, state, told, lambda hook, trainer: None)

    return run


def theirs(model: SelfAblatingTransformer, corpus: TokenCorpus) -> Callable[[int], None]:
    """SAELens' own runner on the same model and windows of the same text."""
    one = config(BATCH)
    context = one.context
    rows = corpus.tokens[: len(corpus.tokens) // context * context].reshape(-1, context)
    dataset = Dataset.from_dict({"tokens": rows.astype(np.int64)})

    def run(tokens: int) -> None:
        sae = StandardTrainingSAEConfig(
            d_in=128,
            d_sae=2048,
            decoder_init_norm=1.0,
            apply_b_dec_to_input=False,
            normalize_activations="expected_average_only_in",
            l1_coefficient=5.0,
        )
        settings: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
            sae=sae,
            model_name="benchmark",
            hook_name=f"blocks.{HOOK_LAYER}.hook_mlp_out",
            dataset_path="",
            context_size=context,
            prepend_bos=False,
            is_dataset_tokenized=True,
            streaming=False,
            n_batches_in_buffer=PROMPTS,
            store_batch_size_prompts=STORE,
            training_tokens=tokens,
            train_batch_size_tokens=BATCH,
            lr=one.lr,
            adam_beta1=0.0,
            n_batches_for_norm_estimate=2,
            checkpoint_path=None,
            output_path=None,
            verbose=False,
            logger=LoggingConfig(log_to_wandb=False),
        )
        LanguageModelSAETrainingRunner(
            settings, override_dataset=dataset, override_model=model
        ).run()

    return run


def floor(context: int) -> Callable[[int], None]:
    """The products of one batch after another, and nothing else."""
    d, d_mlp, d_sae, heads, d_head = 128, 512, 2048, 16, 8
    shapes = [(d, 3 * d), (d, d), (d, d_mlp), (d_mlp, d)]
    layers = [(torch.randn(BATCH, a), torch.randn(a, b), torch.empty(BATCH, b)) for a, b in shapes]
    sequences = BATCH // context
    q = torch.randn(sequences * heads, context, d_head)
    scores = torch.empty(sequences * heads, context, context)
    z = torch.empty_like(q)
    x, acts = torch.randn(BATCH, d), torch.randn(BATCH, d_sae)
    wide, narrow = torch.randn(d, d_sae), torch.randn(d_sae, d)
    out, d_acts = torch.empty(BATCH, d), torch.empty(BATCH, d_sae)
    d_wide, d_narrow = torch.empty_like(wide), torch.empty_like(narrow)

    def run(tokens: int) -> None:
        for _ in range(tokens // BATCH):
            for _ in range(HOOK_LAYER + 1):
                for rows, weight, made in layers:
                    torch.mm(rows, weight, out=made)
                torch.bmm(q, q.transpose(1, 2), out=scores)
                torch.bmm(scores, q, out=z)
            torch.mm(x, wide, out=acts)
            torch.mm(acts, narrow, out=out)
            torch.mm(acts.T, out, out=d_narrow)
            torch.mm(out, narrow.T, out=d_acts)
            torch.mm(x.T, d_acts, out=d_wide)

    return run


def rate(run: Callable[[int], None], short: int, long: int, clock: Callable[[], float]) -> float:
    """Tokens a second between a short and a long training."""
    times = []
    for tokens in (short, long):
        begun = clock()
        run(tokens)
        times.append(clock() - begun)
    return (long - short) / (times[1] - times[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, not the wall's")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    model, corpus = build(), random_corpus()
    buffer = PROMPTS * config(BATCH).context
    mine = ours(model, corpus)
    mine(buffer)  # warm: kernels, allocator
    peaks = []
    for tokens in (2 * buffer, 10 * buffer):
        mine(tokens)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    runs = {
        "ours": mine,
        THEIRS: theirs(model, corpus),
        "floor": floor(config(BATCH).context),
    }
    best = dict.fromkeys(runs, 0.0)
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            best[name] = max(best[name], rate(run, buffer, 4 * buffer, clock))
    table = Table(title=f"Autoencoder, tokens/s, {torch.get_num_threads()} threads")
    table.add_column("")
    for heading in ("tokens/s", "of SAELens'", "of the floor"):
        table.add_column(heading, justify="right")
    for name, found in best.items():
        table.add_row(
            name,
            f"{found:,.0f}",
            f"{found / best[THEIRS]:.2f}",
            f"{found / best['floor']:.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"peak memory of ours: {peaks[0]:,.0f} MiB after {2 * buffer:,} tokens, {peaks[1]:,.0f} "
        f"after {10 * buffer:,}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
