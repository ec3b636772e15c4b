"""SelfAblatingTransformer: a HookedTransformer with a second, ablated stream behind ``dual``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.components import LayerNorm, Unembed
from transformer_lens.utilities.typed_module_list import TypedModuleList
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sat_interp._util.errors import UserError
from sat_interp.io import convert, hugging_face, pretrained, released
from sat_interp.model import fast
from sat_interp.model.block import SelfAblatingBlock, is_rotary, normalise
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.fast import CleanPass
from sat_interp.model.gates import GateScores
from sat_interp.model.shape import attention_units, validate
from sat_interp.model.streams import (
    AblatedFinalHooks,
    DualOutput,
    DualStates,
    TiedUnembed,
    outputs_of,
)
from sat_interp.model.unembedding import token_losses

ForwardPath = Literal["auto", "fast", "hooked"]
MOST_BYTES = 1 << 30
"""Of what :func:`tokens_at_once` allows a pass to keep: streams, projections and masks of every
layer."""


class SelfAblatingTransformer(HookedTransformer):
    """A HookedTransformer whose blocks carry self-ablation gates.

    The paper's is GPT-Neo shaped. Blocks may also be parallel (GPT-NeoX), or have RMSNorm, rotary
    positions, gated MLPs, grouped queries and local attention (Llama and its relatives).

    Everything inherited (calling the model, ``run_with_cache``, ``run_with_hooks``, ``generate``,
    weight processing) is the clean stream: an ordinary transformer, at an ordinary one's cost. The
    gates and the ablated stream run in :meth:`dual` alone. Source: Self-Ablating Transformers
    (arXiv 2505.00509), section 3.

    Args:
        cfg: the shape, as for any HookedTransformer; see ``gpt_neo_config`` for the paper's.
        ablation: the gates; without it, an ordinary transformer.
        tokenizer: as for HookedTransformer.
        tied: whether the unembedding is the embedding's one parameter, as in the paper.

    Raises:
        UserError: k above the number of units, or an architecture that the gates do not support.
    """

    blocks: TypedModuleList[SelfAblatingBlock]  # type: ignore[assignment]
    ln_final: LayerNorm

    def __init__(
        self,
        cfg: HookedTransformerConfig,
        ablation: SelfAblationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tied: bool = True,
    ) -> None:
        ablation = ablation or SelfAblationConfig()
        validate(ablation, cfg)
        wants_weights, cfg.init_weights = cfg.init_weights, False  # ours come after the gates
        super().__init__(cfg, tokenizer=tokenizer, move_to_device=False)
        cfg.init_weights = wants_weights
        self.ablation = ablation
        self.weights_processed = False
        self.blocks = TypedModuleList(
            [SelfAblatingBlock(self.cfg, layer, ablation) for layer in range(self.cfg.n_layers)]
        )
        if tied:
            self.unembed = TiedUnembed(self.cfg, self.embed)
        self.unembed.b_U.requires_grad_(False)
        if ablation.variant == "global" and ablation.has_gate_weights:
            d_mlp = self.cfg.d_mlp or 0  # validate has seen that there are neurons
            self.gates = GateScores(
                self.cfg.d_model,
                self.cfg.n_layers * attention_units(ablation, self.cfg),
                self.cfg.n_layers * d_mlp,
                ablation,
                self.cfg.dtype,
            )
        if ablation.is_gated:
            self.ablated = AblatedFinalHooks()
        if wants_weights:
            self.init_weights()
        if self.cfg.device is not None:
            nn.Module.to(self, self.cfg.device)
        self.setup()

    # The two streams ------------------------------------------------------------------------

    def fast(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: str = "logits",
        loss_per_token: bool = False,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, ""] | Float[Tensor, "batch pos_less_1"]:
        """The clean stream by the fused path; hooks do not fire.

        Equal to ``model(tokens, return_type=..., loss_per_token=...)``. The loss, in nats, needs no
        logits to be held, and has no gradient: to train, see ``sat_interp.training``.

        Raises:
            UserError: another return type, processed weights, or more tokens than n_ctx.
        """
        if return_type not in ("logits", "loss"):
            raise UserError(f"return_type is 'logits' or 'loss', not {return_type!r}")
        if return_type == "logits":
            return fast.unembed(self, self.fast_states(tokens))
        with torch.no_grad():
            states = self.fast_states(tokens)[:, :-1].flatten(0, 1)
        targets, b_U = tokens[:, 1:], self.unembed.b_U
        losses = token_losses(states, self.unembed.W_U, targets.flatten(), b_U)
        return losses.view(targets.shape) if loss_per_token else losses.mean()

    def fast_states(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Clean states after the final LN, by the fused path."""
        self._refuse_processed()
        self._check_length(tokens)
        return fast.clean_pass(self, tokens).final

    def dual(self, tokens: Int[Tensor, "batch pos"], path: ForwardPath = "auto") -> DualOutput:
        """Both streams' logits and every layer's masks, in one call.

        Args:
            path: ``hooked`` fires every hook point, the clean stream's, the gates' and the ablated
                stream's; ``fast`` fires none and computes the same numbers; ``auto`` is hooked
                where any hook is attached (inside ``with model.hooks(...)``), else fast.

        Raises:
            UserError: no gates, processed weights, or more tokens than n_ctx.
        """
        if self._resolve(path) == "hooked":
            states, clean_logits = self._hooked_states(tokens)
        else:
            states = self._fast_states(tokens)
            clean_logits = fast.unembed(self, states.clean)
        return DualOutput(
            clean_logits,
            self.ablated.hook_logits(fast.unembed(self, states.ablated)),
            torch.stack(states.attention_masks, dim=2),
            torch.stack(states.neuron_masks, dim=2),
        )

    def dual_states(
        self, tokens: Int[Tensor, "batch pos"], path: ForwardPath = "auto"
    ) -> DualStates:
        """Both streams up to the final LN, without logits, as training needs them.

        Raises:
            UserError: as :meth:`dual`.
        """
        if self._resolve(path) == "hooked":
            return self._hooked_states(tokens)[0]
        return self._fast_states(tokens)

    def clean_and_masks(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> tuple[CleanPass, list[tuple[Tensor, Tensor]]]:
        """The clean stream and each layer's (attention, neuron) masks, by the fused path.

        No mask reads the ablated stream, which :meth:`dual_states` computes too: it is left out.
        Of the hook points only the gates' fire. Shapes as in ``DualStates``.

        Raises:
            UserError: as :meth:`dual`.
        """
        self._refuse_dual(tokens)
        kept = fast.clean_pass(self, tokens)
        return kept, list(self._masks(kept.states[:-1], kept.final))

    def run_with_cache_dual(
        self,
        tokens: Int[Tensor, "batch pos"],
        names_filter: str | list[str] | Callable[[str], bool] | None = None,
    ) -> tuple[DualOutput, ActivationCache]:
        """``dual``, and a cache of both streams' and the gates' activations."""
        cache, fwd_hooks, _ = self.get_caching_hooks(names_filter)
        with self.hooks(fwd_hooks=fwd_hooks):
            output = self.dual(tokens, path="hooked")
        return output, ActivationCache(cache, self)

    def _hooked_states(self, tokens: Tensor) -> tuple[DualStates, Tensor]:
        self._refuse_dual(tokens)
        watched: list[nn.Module] = [self.ln_final]
        for block in self.blocks:
            watched += [
                block.hook_resid_pre,
                _keys_of(block),
                block.attn.hook_v,
                block.hook_resid_post,
            ]
        with outputs_of(watched) as seen:
            clean_logits = self.forward(tokens, return_type="logits")
        inputs = [seen[block.hook_resid_pre] for block in self.blocks]
        masks = list(self._masks(inputs, seen[self.ln_final]))
        ablated = seen[self.blocks[0].hook_resid_pre]
        ablated_layers = []
        for block, (attention_mask, neuron_mask) in zip(self.blocks, masks, strict=True):
            ablated = block.ablated_forward(
                ablated,
                seen[_keys_of(block)],
                seen[block.attn.hook_v],
                attention_mask,
                neuron_mask,
            )
            ablated_layers.append(ablated)
        final = self.ablated.hook_normalized(normalise(self.ln_final, ablated))
        clean_layers = [seen[block.hook_resid_post] for block in self.blocks]
        return DualStates.of(seen[self.ln_final], final, masks, clean_layers, ablated_layers), (
            clean_logits
        )

    def _fast_states(self, tokens: Tensor) -> DualStates:
        self._refuse_dual(tokens)
        is_frozen = torch.is_grad_enabled() and not fast.trains_base(self)
        if self.ablation.variant == "global" or is_frozen:
            return fast.successive_passes(self, tokens, self._masks)
        return fast.joint_pass(self, tokens)

    def _masks(self, block_inputs: list[Tensor], final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each block's masks: local gates read its input, global ones the final clean state."""
        if self.ablation.variant == "local" or not self.ablation.has_gate_weights:
            for block, state in zip(self.blocks, block_inputs, strict=True):
                yield block.gates(state)
            return
        attention, neurons = (scores.chunk(self.cfg.n_layers, -1) for scores in self.gates(final))
        for block, state, *scores in zip(
            self.blocks, block_inputs, attention, neurons, strict=True
        ):
            yield block.gates(state, tuple(scores))

    # Guards ---------------------------------------------------------------------------------

    def _resolve(self, path: ForwardPath) -> ForwardPath:
        if path != "auto":
            return path
        hooked = any(point.fwd_hooks or point.bwd_hooks for point in self.hook_points())
        return "hooked" if hooked else "fast"

    def _refuse_dual(self, tokens: Tensor) -> None:
        if not self.ablation.is_gated:
            raise UserError(
                "this model has no gates (variant 'none'): call model(tokens), or train with "
                "variant 'local' or 'global'"
            )
        self._refuse_processed()
        self._check_length(tokens)

    def _refuse_processed(self) -> None:
        if self.weights_processed:
            raise UserError(
                "the weights were processed (folded or centred), which changes what the gates "
                "read; load the model again for dual() and fast()"
            )

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.cfg.n_ctx:
            raise UserError(
                f"{tokens.shape[1]} tokens, but the model's context is {self.cfg.n_ctx}; cut them"
            )

    # Weights --------------------------------------------------------------------------------

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """TransformerLens' weight processing, on the clean stream; afterwards ``dual`` raises."""
        processes = (
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
        )
        if any(processes):
            # Folding the final LN and centring change W_U and not W_E: they part here.
            state_dict = {name: tensor.clone() for name, tensor in state_dict.items()}
            state_dict.setdefault("unembed.W_U", state_dict["embed.W_E"].T.clone())
            self.unembed = Unembed(self.cfg).to(self.W_E.device)
            self.weights_processed = True
            self.setup()
        super().load_and_process_state_dict(state_dict, *processes)

    def full_state_dict(self) -> dict[str, Tensor]:
        """The clean stream's weights under TransformerLens' own names, ``unembed.W_U`` included."""
        weights = {
            name: tensor for name, tensor in self.state_dict().items() if "gates." not in name
        }
        weights.setdefault("unembed.W_U", self.W_U)
        return weights

    @property
    def is_tied(self) -> bool:
        """Whether the unembedding is the embedding's one parameter."""
        return isinstance(self.unembed, TiedUnembed)

    recomputes_blocks = False
    """Whether a block's activations are computed again for its gradient and not kept: slower, in
    far less memory. Training sets it."""

    # In and out: sat_interp.io does the work --------------------------------------------

    card: Mapping[str, Any] = {}
    """Facts about the training that :meth:`from_pretrained` read, for the next model card."""

    tokenizer_hash: str | None = None
    """Hash of the tokenizer the model was saved with, which :meth:`from_pretrained` read."""

    hugging_face: Mapping[str, Any] | None = None
    """Configuration of the Hugging Face model that this one began as, for :meth:`to_hf`."""

    has_own_bos = False
    """Whether stories follow the BOS token of the model's tokenizer and not end-of-text: so in a
    model that began as another one with such a token."""

    def save_pretrained(
        self,
        directory: str | Path,
        card: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Path:
        """Write cfg.json, model.safetensors, the tokenizer and a model card.

        See :func:`sat_interp.io.pretrained.save_pretrained`.
        """
        return pretrained.save_pretrained(self, directory, card, dtype)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> SelfAblatingTransformer:
        """Load a saved model, a bundled ``demo:`` model, or one from the hub.

        See :func:`sat_interp.io.pretrained.load_pretrained`.
        """
        return pretrained.load_pretrained(cls, name, device, dtype, revision, tokenizer)

    @classmethod
    def outline(cls, directory: Path) -> SelfAblatingTransformer:
        """Build a saved model without its weights, on the meta device: shape and hook points.

        See :func:`sat_interp.io.pretrained.outline`.
        """
        return pretrained.outline(cls, directory)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload to the Hugging Face hub. See :func:`sat_interp.io.pretrained.push_to_hub`."""
        return pretrained.push_to_hub(self, repo_id, private, token, card)

    def to_hooked_transformer(self) -> HookedTransformer:
        """A plain HookedTransformer without gates; see :mod:`sat_interp.io.convert`."""
        return convert.to_hooked_transformer(self)

    @classmethod
    def from_hooked_transformer(
        cls, model: HookedTransformer, ablation: SelfAblationConfig | None = None
    ) -> SelfAblatingTransformer:
        """Any covered HookedTransformer's weights, with fresh gates; see ``io.convert``."""
        return convert.from_hooked_transformer(cls, model, ablation)

    def to_hf(self, directory: str | Path | None = None) -> PreTrainedModel:
        """The Hugging Face class it began as, else GPT-Neo; saved if ``directory`` is given.

        See :func:`sat_interp.io.hugging_face.to_hf`.
        """
        return hugging_face.to_hf(self, directory)

    @classmethod
    def from_hf(
        cls,
        model: PreTrainedModel | str | Path,
        ablation: SelfAblationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> SelfAblatingTransformer:
        """A Hugging Face model (in memory, directory, GGUF file or hub name), with fresh gates."""
        return hugging_face.from_hf(cls, model, ablation, tokenizer)

    @classmethod
    def from_released(
        cls,
        state_dict: Mapping[str, Tensor],
        n_heads: int,
        ablation: SelfAblationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> SelfAblatingTransformer:
        """The authors' weights under their own names; see ``sat_interp.io.released``."""
        return released.from_released(cls, state_dict, n_heads, ablation, tokenizer)


def tokens_at_once(model: SelfAblatingTransformer) -> int:
    """Tokens of a pass over both streams without gradient that keeps at most ``MOST_BYTES``."""
    cfg = model.cfg
    width = 5 * cfg.n_heads * cfg.d_head + 2 * cfg.d_model + 4 * (cfg.d_mlp or 0)
    return max(1, MOST_BYTES // (cfg.n_layers * width * model.W_E.element_size()))


def _keys_of(block: SelfAblatingBlock) -> nn.Module:
    """The hook point of a block's keys as scores read them: rotated where positions are rotary."""
    attention: Any = block.attn
    point: nn.Module = attention.hook_rot_k if is_rotary(block) else attention.hook_k
    return point
