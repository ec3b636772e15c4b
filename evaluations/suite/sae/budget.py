"""How many activations an autoencoder is trained on, and how often the text is read for that."""

from __future__ import annotations

import dataclasses
from math import ceil

from evaluations.suite.sae.config import SaeConfig
from evaluations.suite.sae.health import MOST_PASSES
from sat_interp._util.errors import UserError


def buffer_tokens(config: SaeConfig, context: int) -> int:
    """Return the size of a buffer of activations, which no budget may be below.

    Args:
        context: tokens of a window.
    """
    return max(config.buffer_prompts * context, config.batch_tokens)


def check_budget(config: SaeConfig, context: int) -> None:
    """Refuse a budget below one buffer of activations.

    Args:
        context: tokens of a window.

    Raises:
        UserError: the budget is smaller.
    """
    buffer = buffer_tokens(config, context)
    if config.tokens < buffer:
        raise UserError(
            f"--tokens {config.tokens:,} is less than one buffer of {buffer:,} activations: use "
            "more"
        )


def enough_text(config: SaeConfig) -> int:
    """Return the tokens of text above which the whole budget of a configuration is used."""
    return ceil(config.tokens / MOST_PASSES)


def fitted(config: SaeConfig, context: int, text_tokens: int) -> SaeConfig:
    """Return the configuration with a budget of at most 20 passes over the text, in whole batches.

    Everything else of the schedule is a share of the budget, so it is scaled with it.

    Args:
        context: tokens of a window.
        text_tokens: tokens of the training text.

    Raises:
        UserError: so many passes over the text do not fill one buffer.
    """
    if config.given is not None or text_tokens >= enough_text(config):
        return config
    batch, buffer = config.batch_tokens, buffer_tokens(config, context)
    tokens = MOST_PASSES * text_tokens // batch * batch
    if tokens < buffer:
        least = ceil(buffer / batch) * batch
        raise UserError(
            f"no autoencoder can be trained on a text of {text_tokens:,} tokens: it takes at least "
            f"{ceil(least / MOST_PASSES):,}, so that {MOST_PASSES} passes over them give one "
            f"buffer of {buffer:,} activations; use more text, or --tokens {least} to read this "
            "one more often"
        )
    return dataclasses.replace(config, tokens=tokens)
