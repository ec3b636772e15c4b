"""A SAELens directory: checked before it is built, then opened, or refused in one line.

All autoencoders are read here, so everything that their files state is checked here: sizes against
the weights, types, numbers that are not finite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import safe_open

from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically
from sat_interp._util.reading import UnreadableError, read_json

MAX_CONFIG_BYTES = 1 << 20
DTYPES = ("float32", "float64", "float16", "bfloat16")
ARCHITECTURES = ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit")
"""SAELens' architectures that read and reconstruct one activation by itself."""
WITH_K = ("topk", "abstopk")
RESHAPES = ("none", "hook_z")
LARGEST = 3e38
"""About the largest number that float32 can hold."""
FIGURES = ("l0", "l0_measured_on", "num_dead_features")
"""Entries of the metadata that are results, and do not change what an autoencoder computes."""

Config = dict[str, Any]


def open_sae(directory: Path, device: str) -> SAE[Any]:
    """Open a SAELens directory, by SAELens.

    Raises:
        UserError: it is none; its configuration is not that of an autoencoder, or not of these
            weights; a weight is not finite.
    """
    config = read_config(directory)
    _check_weights(directory, config)
    try:
        sae: SAE[Any] = SAE.load_from_disk(directory, device=device).eval()
    except Exception as error:  # SAELens' and safetensors' failures have no common base class
        raise UserError(f"SAELens cannot open {directory}: {_one_line(error)}") from None
    for name, tensor in sae.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{directory}: {name} of the autoencoder is not finite (NaN)")
    return sae


def read_config(directory: Path) -> Config:
    """Read and check the configuration of a SAELens directory.

    Raises:
        UserError: there is none, or an entry cannot be what it says.
    """
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (directory / name).is_file():
            raise UserError(f"{directory} is not a SAELens directory: it has no {name}")
    path = directory / SAE_CFG_FILENAME
    config = _read_mapping(path)
    for name, (wanted, is_right) in _FIELDS.items():
        if name in config and not is_right(config[name]):
            raise UserError(f"{path}: {name} is {_shown(config[name])}, not {wanted}")
    for name in ("d_in", "d_sae"):
        if name not in config:
            raise UserError(f"{path} has no {name}")
    if not isinstance(_metadata(config).get("hook_name", ""), str):
        raise UserError(f"{path}: hook_name is {_shown(_metadata(config)['hook_name'])}, no name")
    _check_k(path, config)
    return config


def _read_mapping(path: Path) -> Config:
    try:
        config = read_json(path, MAX_CONFIG_BYTES)
    except UnreadableError as error:
        raise UserError(f"{path} is not an autoencoder configuration: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is JSON, but no configuration of an autoencoder")
    return config


def _check_k(path: Path, config: Config) -> None:
    k = config.get("k")
    if k is None and config.get("architecture") in WITH_K:  # SAELens would take 100
        raise UserError(f"{path}: {config['architecture']} needs k, and there is none")
    if k is not None and not 1 <= k <= config["d_sae"]:
        raise UserError(f"{path}: k is {_shown(k)}, not 1 to {config['d_sae']}")


def hook_point(
    directory: Path, remedy: str = f"write hook_name into its {SAE_CFG_FILENAME}"
) -> str:
    """Return the hook point that an autoencoder was trained on, as its directory names it.

    Args:
        directory: of the autoencoder.
        remedy: what the message advises where it names none.

    Raises:
        UserError: the directory cannot be read, or names none.
    """
    name = _hook_name(read_config(directory))
    if not name:
        raise UserError(f"{directory} names no hook point: {remedy}")
    return str(name)


def content_hash(directory: Path) -> str:
    """Return the hash of an autoencoder's weights and configuration, 16 digits.

    Results in its metadata are not part of it.

    Raises:
        UserError: the directory cannot be read.
    """
    config = read_config(directory)
    metadata = {key: value for key, value in _metadata(config).items() if key not in FIGURES}
    known = json.dumps({**config, "metadata": metadata, "device": None}, sort_keys=True)
    digest = hashlib.sha256(known.encode())
    digest.update((directory / SAE_WEIGHTS_FILENAME).read_bytes())
    return digest.hexdigest()[:16]


def weights_hash(directory: Path) -> str:
    """Return the hash of the autoencoder's weights file, 16 digits."""
    return hashlib.sha256((directory / SAE_WEIGHTS_FILENAME).read_bytes()).hexdigest()[:16]


def write_l0(directory: Path, l0: float, text: dict[str, Any]) -> None:
    """Write a measured L0, and the text it was measured on, into the metadata SAELens reads.

    Raises:
        OSError: it cannot be written.
    """
    config = read_config(directory)
    metadata = {**_metadata(config), "l0": l0, "l0_measured_on": text}
    if metadata != _metadata(config):
        write_atomically(directory / SAE_CFG_FILENAME, json.dumps({**config, "metadata": metadata}))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31


def _is_length(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= LARGEST


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "d_in": ("a number of dimensions", _is_size),
    "d_sae": ("a number of features", _is_size),
    "architecture": (
        f"one of {', '.join(ARCHITECTURES)}",
        lambda value: isinstance(value, str) and value in ARCHITECTURES,
    ),
    "dtype": (
        f"one of {', '.join(DTYPES)}",
        lambda value: isinstance(value, str) and value.removeprefix("torch.") in DTYPES,
    ),
    "k": ("a number of features", lambda value: value is None or _is_size(value)),
    "max_iterations": ("a number of steps", lambda value: value is None or _is_size(value)),
    "residual_threshold": ("a length of 0 or more", _is_length),
    "apply_b_dec_to_input": ("true or false", lambda value: isinstance(value, bool)),
    "rescale_acts_by_decoder_norm": ("true or false", lambda value: isinstance(value, bool)),
    "reshape_activations": (
        f"one of {', '.join(RESHAPES)}",
        lambda value: isinstance(value, str) and value in RESHAPES,
    ),
    "normalize_activations": (
        "the name of a normalisation",
        lambda value: value is None or isinstance(value, str | bool),
    ),
    "metadata": ("a mapping", lambda value: isinstance(value, dict)),
    "hook_name": ("a name", lambda value: isinstance(value, str)),
    "hook_point": ("a name", lambda value: isinstance(value, str)),
}


def _check_weights(directory: Path, config: Config) -> None:
    """Compare the weights' shapes with the configuration before anything is read or built."""
    path = directory / SAE_WEIGHTS_FILENAME
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
            types = {name: str(tensor.get_dtype()) for name, tensor in slices.items()}
    except Exception as error:  # safetensors' errors have no common base class
        raise UserError(f"SAELens cannot open {path}: {_one_line(error)}") from None
    sizes = {"d_in": config["d_in"], "d_sae": config["d_sae"]}
    expected = {
        "W_dec": ("d_sae", "d_in"),
        "W_enc": ("d_in", "d_sae"),
        "b_dec": ("d_in",),
        "b_enc": ("d_sae",),
        "threshold": ("d_sae",),
    }
    if "W_dec" not in shapes:
        raise UserError(f"{path} has no W_dec, so these are not the weights of an autoencoder")
    for name, axes in expected.items():
        wanted = tuple(sizes[axis] for axis in axes)
        if name in shapes and shapes[name] != wanted:
            raise UserError(
                f"{path}: {name} has the shape {shapes[name]}, but d_in {sizes['d_in']} and d_sae "
                f"{sizes['d_sae']} make it {wanted}"
            )
    for name, kind in types.items():
        if not kind.startswith(("F", "BF")):
            raise UserError(f"{path}: {name} holds numbers of the type {kind}, no weights")


def _metadata(config: Config) -> dict[str, Any]:
    metadata = config.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _hook_name(config: Config) -> str | None:
    """Return the hook point; SAELens 6 has it in the metadata, older versions beside the sizes."""
    places = (_metadata(config).get("hook_name"), config.get("hook_name"), config.get("hook_point"))
    return next((name for name in places if name), None)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
