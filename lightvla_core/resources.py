"""Where the files of config/ are: in a checkout, in a pip install (<prefix>/share), in an ament install."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from lightvla_core.errors import LightVLAError

_PACKAGE = "lightvla_ros"


def resource(relative: str) -> Path:
    """The path of a file that ships with this package, such as `config/robots/aloha.yaml`."""
    tried = []
    for root in _roots():
        path = root / relative
        if path.exists():
            return path
        tried.append(str(path))
    raise LightVLAError(f"{relative} of {_PACKAGE} is not installed; looked at {', '.join(tried)}")


def _roots() -> Iterator[Path]:
    checkout = Path(__file__).resolve().parent.parent
    # An installed package lies beside its dependencies; only a checkout has its package.xml or pyproject.toml there.
    if (checkout / "pyproject.toml").is_file():
        yield checkout
    yield from _ament_share()
    yield Path(sys.prefix) / "share" / _PACKAGE


def _ament_share() -> Iterator[Path]:
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    except ImportError:
        return
    try:
        yield Path(get_package_share_directory(_PACKAGE))
    except (PackageNotFoundError, OSError):  # OSError: AMENT_PREFIX_PATH is not set, as with the pip wheels
        return
