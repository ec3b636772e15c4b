"""Files of lenses: safetensors, whose metadata name the model by the hash of its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.lens.lenses import Lenses, Spent, shapes
from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import expanded, write_atomically

FORMAT = "sat-eval lens 2"


@dataclass(frozen=True)
class Owner:
    """The model that lenses belong to.

    Attributes:
        key: hash of its weights, gates and configuration (``runner.model_key``).
    """

    name: str
    weights: str
    key: str

    def __str__(self) -> str:
        """Return the model as messages name it."""
        return f"{self.name} (weights {self.weights[:8]})"


@dataclass(frozen=True)
class Stories:
    """What decides which stories lenses are fitted on, and which are held out.

    Attributes:
        content: hash of the text.
        window: tokens of a window, the one before the story included.
        seed: of the split.
    """

    content: str
    fit_windows: int
    held_windows: int
    window: int
    seed: int

    def __str__(self) -> str:
        """Return the stories as messages name them."""
        return (
            f"text {self.content[:8]} with --fit-windows {self.fit_windows} --held-windows "
            f"{self.held_windows} --window {self.window} --seed {self.seed}"
        )


def save_lenses(lenses: Lenses, owner: Owner, stories: Stories, path: Path) -> Path:
    """Write lenses to a file, whole or not at all."""
    metadata = {
        "format": FORMAT,
        "model": json.dumps(asdict(owner)),
        "stories": json.dumps(asdict(stories)),
        "spent": json.dumps({kind: asdict(spent) for kind, spent in lenses.spent.items()}),
        "fits": json.dumps(lenses.fits),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in lenses.tensors.items()}
    return write_atomically(path, save(tensors, metadata))


def load_lenses(
    path: str | Path, owner: Owner, stories: Stories, model: HookedTransformer
) -> Lenses:
    """Read the lenses of a model.

    Raises:
        UserError: the file cannot be read, holds no lenses, or those of another model, or lenses
            fitted on other stories: some of those that are held out now may be among them.
    """
    place = expanded(path)
    try:
        with safe_open(place, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} has no lenses that this version reads: fit them again")
            theirs = Owner(**json.loads(metadata["model"]))
            if theirs.key != owner.key:
                raise UserError(f"{path} has lenses of {theirs}, not of {owner}: fit its own")
            fitted_on = Stories(**json.loads(metadata["stories"]))
            if fitted_on != stories:
                raise UserError(
                    f"{path} has lenses fitted on {fitted_on}, not on {stories}: stories held out "
                    "now may be among those they were fitted on; ask for the same, or fit again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            spent = {kind: Spent(**one) for kind, one in json.loads(metadata["spent"]).items()}
            fits: dict[str, list[dict[str, Any]]] = json.loads(metadata["fits"])
    except UserError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has no lenses: {first_line(error)}") from None
    _check(path, tensors, spent, model)
    device = model.W_E.device
    return Lenses({name: one.to(device) for name, one in tensors.items()}, spent, fits)


def _check(
    path: str | Path, tensors: dict[str, Tensor], spent: dict[str, Spent], model: HookedTransformer
) -> None:
    """Refuse tensors of other shapes than the model's lenses have.

    Raises:
        UserError: as above.
    """
    wanted = {
        name: shape
        for kind in spent
        for name, shape in shapes(kind, int(model.cfg.n_layers), int(model.cfg.d_model)).items()
    }
    for name, shape in wanted.items():
        found = tensors.get(name, torch.zeros(0))
        if len(found.shape) != len(shape) or any(
            size not in (None, own) for size, own in zip(shape, found.shape, strict=True)
        ):
            raise UserError(f"{path}: {name} is missing, or of another shape than the model's")
