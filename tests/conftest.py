"""The device under test: `pytest --device cuda` runs the same tests there."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors under test, such as cpu or cuda:0")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def cpu(device: torch.device) -> torch.device:
    """For what only a CPU has: threads and instruction sets."""
    if device.type != "cpu":
        pytest.skip(f"about the CPU, not {device}")
    return device
