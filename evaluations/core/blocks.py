"""The kind of blocks a model has."""

from __future__ import annotations

from transformer_lens import HookedTransformer

from evaluations.core.bridged import BridgedTransformer
from sat_interp._util.errors import UserError


def check_sequential(model: HookedTransformer, evaluation: str) -> None:
    """Do nothing if a block's MLP reads the stream after the block's attention.

    Args:
        evaluation: named in the message.

    Raises:
        UserError: attention and MLP read the same stream (GPT-J, GPT-NeoX, Pythia, Phi), or blocks
            are only run as a whole.
    """
    check_parts(model, evaluation)
    cfg = model.cfg
    if cfg.parallel_attn_mlp:
        name = cfg.original_architecture or cfg.model_name
        raise UserError(
            f"{name} has parallel blocks (attention and MLP read the same stream); {evaluation} "
            "measures models of sequential blocks"
        )


def check_parts(model: HookedTransformer, evaluation: str) -> None:
    """Do nothing if the parts of a model's blocks can be run by themselves.

    Args:
        evaluation: named in the message.

    Raises:
        UserError: the model is read through TransformerLens' bridge.
    """
    if isinstance(model, BridgedTransformer):
        raise UserError(
            f"{model.cfg.original_architecture} is read through TransformerLens' bridge, which "
            f"runs the model as a whole; {evaluation} runs parts of blocks by themselves"
        )
