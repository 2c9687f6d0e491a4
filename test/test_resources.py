"""The files of config/ are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightvla_core import resources
from lightvla_core.errors import LightVLAError


def test_checkout_is_found() -> None:
    assert resources.resource("config/robots/aloha.yaml").is_file()


def test_pip_and_ament_installs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages/lightvla_core"
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    ament = tmp_path / "install"
    for file in ("venv/share/lightvla_ros/config/a.yaml", "install/share/lightvla_ros/config/b.yaml"):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.touch()
    (ament / "share/ament_index/resource_index/packages").mkdir(parents=True)
    (ament / "share/ament_index/resource_index/packages/lightvla_ros").touch()
    assert resources.resource("config/a.yaml") == tmp_path / "venv/share/lightvla_ros/config/a.yaml"
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(ament))
    assert resources.resource("config/b.yaml") == ament / "share/lightvla_ros/config/b.yaml"
    with pytest.raises(LightVLAError, match="is not installed; looked at"):
        resources.resource("config/c.yaml")
