"""The device under test: `pytest --device cuda` runs the same tests there. And how many examples hypothesis tries."""

from collections.abc import Iterator

import helpers
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch._functorch import config as functorch_config

# Derandomized: the same examples in every run. Of the suite's few, all laws take some 15 seconds;
# `make validation` asks for --hypothesis-profile validation.
DETERMINED = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("suite", max_examples=30, **DETERMINED)
settings.register_profile("validation", max_examples=300, phases=[Phase.generate], **DETERMINED)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors under test: cpu, cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test file is imported: some make tensors then."""
    helpers.DEVICE = parse_device(config.getoption("--device"))


def parse_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise pytest.UsageError(f"--device: expected cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cpu":
        return device
    device_count = torch.cuda.device_count()
    if (device.index or 0) >= device_count:
        raise pytest.UsageError(f"--device: torch {torch.__version__} finds {device_count} CUDA devices, got {text!r}")
    from illia_ext import _C

    if not _C.build_info()["cuda"]:
        raise pytest.UsageError(f"--device: the library {_C.__file__} was built without CUDA, got {text!r}")
    return torch.device("cuda", device.index or 0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return helpers.DEVICE


@pytest.fixture(scope="session")
def cpu(device: torch.device) -> torch.device:
    """For what does not involve the device, and for what only a CPU has: threads and instruction sets."""
    if device.type != "cpu":
        pytest.skip(f"about the CPU, not {device.type}")
    return device


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """For what only a GPU has: streams, graphs, launches."""
    if device.type != "cuda":
        pytest.skip(f"about CUDA, not {device.type}: pytest --device cuda")
    return device


@pytest.fixture
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No results of earlier runs: the cache on disk knows the ops' names, not the Python code of their derivatives."""
    torch._dynamo.reset()
    with functorch_config.patch(enable_autograd_cache=False):
        yield
    torch._dynamo.reset()
