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

FORMAT = "sat-eval lens 1"


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


def save_lenses(lenses: Lenses, owner: Owner, path: Path) -> Path:
    """Write lenses to a file, whole or not at all."""
    metadata = {
        "format": FORMAT,
        "model": json.dumps(asdict(owner)),
        "spent": json.dumps({kind: asdict(spent) for kind, spent in lenses.spent.items()}),
        "fits": json.dumps(lenses.fits),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in lenses.tensors.items()}
    return write_atomically(path, save(tensors, metadata))


def load_lenses(path: str | Path, owner: Owner, model: HookedTransformer) -> Lenses:
    """Read the lenses of a model.

    Raises:
        UserError: the file cannot be read, holds no lenses, or those of another model.
    """
    place = expanded(path)
    try:
        with safe_open(place, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} has no lenses that this version reads")
            theirs = Owner(**json.loads(metadata["model"]))
            if theirs.key != owner.key:
                raise UserError(f"{path} has lenses of {theirs}, not of {owner}: fit its own")
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
