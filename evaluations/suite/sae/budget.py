"""Training budgets: the number of activations, limited by the size of the text."""

from __future__ import annotations

import dataclasses
from math import ceil

from evaluations.suite.sae.config import SaeConfig
from evaluations.suite.sae.health import MOST_PASSES
from sat_interp._util.errors import UserError


def buffer_tokens(config: SaeConfig, context: int) -> int:
    """Return the size of a buffer of activations, the minimum budget.

    Args:
        context: tokens per window.
    """
    return max(config.buffer_prompts * context, config.batch_tokens)


def check_budget(config: SaeConfig, context: int) -> None:
    """Check that the budget is at least one buffer of activations.

    Args:
        context: tokens per window.

    Raises:
        UserError: the budget is smaller.
    """
    buffer = buffer_tokens(config, context)
    if config.tokens < buffer:
        raise UserError(
            f"--tokens {config.tokens:,} is less than one buffer of {buffer:,} activations: "
            "increase --tokens"
        )


def enough_text(config: SaeConfig) -> int:
    """Return the number of tokens of text that allows the full budget."""
    return ceil(config.tokens / MOST_PASSES)


def fitted(config: SaeConfig, context: int, text_tokens: int) -> SaeConfig:
    """Limit the budget to 20 passes over the text, in whole batches.

    Args:
        context: tokens per window.
        text_tokens: tokens of the training text.

    Raises:
        UserError: 20 passes over the text do not fill one buffer.
    """
    if config.given is not None or text_tokens >= enough_text(config):
        return config
    batch, buffer = config.batch_tokens, buffer_tokens(config, context)
    tokens = MOST_PASSES * text_tokens // batch * batch
    if tokens < buffer:
        least = ceil(buffer / batch) * batch
        raise UserError(
            f"no autoencoder can be trained on a text of {text_tokens:,} tokens: it takes at least "
            f"{ceil(least / MOST_PASSES):,}, so that {MOST_PASSES} passes fill one buffer of "
            f"{buffer:,} activations; use more text, or --tokens {least} for more passes"
        )
    return dataclasses.replace(config, tokens=tokens)
