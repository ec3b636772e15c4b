"""The Hugging Face hub: models of ours, down and up; its failures as one line each."""

from __future__ import annotations

from pathlib import Path

from sat_interp._util.errors import UserError
from sat_interp.io.locate import CONFIG, OUR_FILES


def download(name: str, revision: str | None) -> Path:
    """A hub repository's snapshot: our files only, from the cache where HF_HUB_OFFLINE is set.

    Raises:
        UserError: offline and not cached, private, no such name, or no model of ours.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(name, revision=revision, allow_patterns=list(OUR_FILES))
    except Exception as error:  # the hub's failures have no common base class
        raise UserError(
            f"there is no directory {name!r}, and the Hugging Face hub gives no such model "
            f"(offline, private, or no such name): {_first_line(error)}"
        ) from error
    if not Path(snapshot, CONFIG).is_file():
        raise UserError(
            f"{name!r} on the Hugging Face hub holds no {CONFIG}: it is not one of ours"
        )
    return Path(snapshot)


def upload(directory: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Upload a directory to ``repo_id`` (``owner/name``), made if need be; returns its address.

    Raises:
        UserError: offline, not logged in, or the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload model")
    except Exception as error:  # the hub's failures have no common base class
        raise UserError(
            f"the Hugging Face hub did not take {repo_id!r} (log in with 'hf auth login', or "
            f"pass token=): {_first_line(error)}"
        ) from error
    return str(created)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
