"""Every test runs: pytest leaves out some folders by their names, `build` among them."""

from pathlib import Path

import pytest


def test_no_folder_of_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    folders = {path.parent.name for path in Path(__file__).parent.rglob("test_*.py")}
    assert "build" in folders and folders.isdisjoint(pytestconfig.getini("norecursedirs"))
