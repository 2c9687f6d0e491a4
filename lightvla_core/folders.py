"""Checkpoint folders as folders: they exist, their JSON reads, and a new one appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def is_own_format(folder: Path) -> bool:
    """Whether a folder is of this package's form, rather than a published one. Raises where it has no config.json."""
    data = read_json(folder / CONFIG_FILE)
    return isinstance(data, dict) and "format" in data


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only once its content is complete; nothing stays of one that is not.

    Raises LightVLAError for an OSError inside: what is read there must tell its own.
    """
    made: list[Path] = []
    try:
        if folder.exists():
            raise LightVLAError(f"{folder} exists already; name a new folder or remove it first")
        made = [parent for parent in folder.parents if not parent.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_sibling(folder) as partial:
            yield partial
            partial.chmod(0o755)
            partial.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise LightVLAError(f"cannot write {folder} ({reason}); make room or name a folder you may write to") from None
    finally:
        for parent in made:
            with suppress(OSError):  # a folder that holds the new one is not empty and stays
                parent.rmdir()


@contextmanager
def _temporary_sibling(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
