"""To and from a plain HookedTransformer.

See ``hugging_face.py`` for transformers' models and ``released.py`` for the authors' weights. The
clean stream's logits are the same on either side of every conversion.
"""

from __future__ import annotations

import copy

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sat_interp._util.errors import UserError
from sat_interp.io.architectures import ARCHITECTURES
from sat_interp.io.protocol import Build, GatedTransformer, Model, refuse_processed
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import validate

_UNTIED = {each.name for each in ARCHITECTURES.values()} - {"GPT2LMHeadModel", "GPTNeoForCausalLM"}


def to_hooked_transformer(model: GatedTransformer) -> HookedTransformer:
    """The clean stream as a plain HookedTransformer with its own weights and without the gates.

    Its W_U is a parameter beside W_E, as everywhere in TransformerLens.

    Raises:
        UserError: processed weights.
    """
    refuse_processed(model)
    cfg = _copied_config(model, init_weights=False)
    plain = HookedTransformer(cfg, tokenizer=model.tokenizer)
    plain.load_state_dict(model.full_state_dict())
    cfg.init_weights = True
    return plain.train(model.training)


def from_hooked_transformer(
    build: Build[Model], model: HookedTransformer, ablation: SelfAblationConfig | None = None
) -> Model:
    """``model``'s weights, copied, with fresh gates (drawn from torch's global generator).

    Biases that the architecture lacks (see ``absent_biases``) are kept, and stay frozen.

    Raises:
        UserError: processed weights, an unembedding that is not the embedding (GPT-NeoX, Llama and
            its relatives may have one), an architecture the gates do not cover, or k above the
            number of units.
    """
    cfg = _copied_config(model, init_weights=True)
    if cfg.normalization_type in ("LNPre", "RMSPre") or getattr(model, "weights_processed", False):
        raise UserError(
            "the weights were processed (folded or centred), which changes what gates would read; "
            "load them with HookedTransformer.from_pretrained_no_processing"
        )
    validate(ablation or SelfAblationConfig(), cfg)
    is_tied = torch.equal(model.W_U, model.W_E.T)
    if not is_tied and cfg.original_architecture not in _UNTIED:
        raise UserError(
            "W_U is not the transpose of W_E: self-ablating transformers tie the two; if centring "
            "parted them, load with HookedTransformer.from_pretrained_no_processing"
        )
    ours = build(cfg, ablation, model.tokenizer, tied=is_tied)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name in theirs and "gates." not in name:
                parameter.copy_(theirs[name])
    if isinstance(model, GatedTransformer):
        ours.hugging_face, ours.has_own_bos = model.hugging_face, model.has_own_bos
    return ours.train(model.training)


def _copied_config(
    model: HookedTransformer | GatedTransformer, init_weights: bool
) -> HookedTransformerConfig:
    """Shape of ``model``, with the device and type that its weights have now.

    ``.double()`` and the like do not change the config. The seed is left out: TransformerLens
    reseeds every generator of the process with it.
    """
    cfg = copy.deepcopy(model.cfg)
    cfg.seed, cfg.init_weights = None, init_weights
    cfg.device, cfg.dtype = str(model.W_E.device), model.W_E.dtype
    return cfg
