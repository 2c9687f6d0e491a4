"""LightVLA policies without ROS: contract, model, checkpoints, preprocessing.

Names are imported on first use, so that the contract and the normalization come without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightvla_core.contract import PolicyContract as PolicyContract
    from lightvla_core.errors import LightVLAError as LightVLAError
    from lightvla_core.interface import ActionChunk as ActionChunk
    from lightvla_core.interface import Observation as Observation
    from lightvla_core.policy import Policy as Policy

_HOME = {
    "ActionChunk": "interface",
    "LightVLAError": "errors",
    "Observation": "interface",
    "Policy": "policy",
    "PolicyContract": "contract",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
