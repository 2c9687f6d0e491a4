"""Checkpoint folders as folders: they exist, their JSON reads, and a new one appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightvla_core.errors import LightVLAError

CONFIG_FILE = "config.json"


def require_folder(folder: Path) -> None:
    if folder.is_file():
        raise LightVLAError(f"checkpoint {folder} is a file, expected the folder that holds {CONFIG_FILE} and weights")
    if not folder.is_dir():
        raise LightVLAError(
            f"checkpoint {folder} does not exist; expected a folder that holds {CONFIG_FILE} and weights"
        )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise LightVLAError(f"cannot read {path} ({error.strerror}); is {path.parent} a complete checkpoint?") from None
    except ValueError as error:
        raise LightVLAError(f"{path} is not valid JSON ({error}); copy it again") from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only once its content is complete."""
    if folder.exists():
        raise LightVLAError(f"{folder} exists already; name a new folder or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise LightVLAError(f"cannot write {folder} ({error.strerror}); name a folder you may write to") from None
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
