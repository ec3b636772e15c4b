"""The kind of blocks a model has."""

from __future__ import annotations

from transformer_lens import HookedTransformer

from sat_interp._util.errors import UserError


def check_sequential(model: HookedTransformer, evaluation: str) -> None:
    """Do nothing if a block's MLP reads the stream after the block's attention.

    Args:
        evaluation: named in the message.

    Raises:
        UserError: attention and MLP read the same stream (GPT-J, GPT-NeoX, Pythia, Phi).
    """
    cfg = model.cfg
    if cfg.parallel_attn_mlp:
        name = cfg.original_architecture or cfg.model_name
        raise UserError(
            f"{name} has parallel blocks (attention and MLP read the same stream); {evaluation} "
            "measures models of sequential blocks"
        )
