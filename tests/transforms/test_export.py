"""torch.export and AOTInductor: an exported program draws what its module draws, here and in a fresh interpreter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_keys, run_python, same_bits
from torch import Tensor, nn

from illia_ext import GaussianDistribution

parametrize = pytest.mark.parametrize


class Network(nn.Module):
    """Draws in every way, the keys too."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((3, 4), rho_init=-1.0)
        self.bias = GaussianDistribution(3, rho_init=-1.0)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, log_prob = self.weights.sample_and_log_prob()
        biases = self.bias.sample(2)
        log_prob = log_prob + self.bias.log_prob(biases).sum() + self.weights.log_prob()
        return nn.functional.linear(inputs, weights, biases.mean(0)), log_prob, self.bias.kl_divergence()


@pytest.fixture(scope="module")
def network(device: torch.device) -> Network:
    torch.manual_seed(0)
    return Network().to(device)


def make_inputs(batch: int, device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, batch * 4, device=device).reshape(batch, 4)


def export(network: Network, strict: bool = True) -> torch.export.ExportedProgram:
    """For every number of rows."""
    shapes = {"inputs": {0: torch.export.Dim("batch", min=1, max=64)}}
    return torch.export.export(network, (make_inputs(5, network.bias.mu.device),), dynamic_shapes=shapes, strict=strict)


def draw(network: Callable[..., Any], inputs: Tensor) -> list[Tensor]:
    """Two calls after one seed: the second tells a draw from a constant."""
    torch.manual_seed(5)
    return [output.detach() for _ in range(2) for output in network(inputs)]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert same_bits(a, b)


@parametrize("strict", [True, False])
def test_exported_network_is_the_network(strict: bool, network: Network, device: torch.device) -> None:
    exported = export(network, strict).module()
    for batch in (5, 8, 1):
        assert_same(draw(exported, make_inputs(batch, device)), draw(network, make_inputs(batch, device)))
    gradients = []
    for module in (exported, network):
        parameters = [module.get_parameter(name) for name, _ in network.named_parameters()]
        torch.manual_seed(5)
        gradients.append(list(torch.autograd.grad(sum(o.sum() for o in module(make_inputs(5, device))), parameters)))
    assert_same(*gradients)


class Draw(nn.Module):
    """A sample for each key, or for each row of an input."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weights = GaussianDistribution((3, 4), device=device)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if rows.is_floating_point():
            return self.weights.sample_and_log_prob(rows.shape[0])
        return self.weights.sample_and_log_prob(key=rows)


@parametrize("strict", [True, False])
def test_number_of_samples(strict: bool, device: torch.device) -> None:
    """Dynamic as a number of keys. A number that is counted at run time is refused: torch.randint takes no such one."""
    module = Draw(device)
    dynamic: dict[str, Any] = {"dynamic_shapes": {"rows": {0: torch.export.Dim("rows", min=1)}}, "strict": strict}
    exported = torch.export.export(module, (make_keys((1, 2), (3, 4), (5, 6), device=device),), **dynamic).module()
    keys = make_keys(*((i, i) for i in range(7)), device=device)
    assert_same(list(exported(keys)), list(module(keys)))
    with pytest.raises(torch._dynamo.exc.UserError, match="rows"):
        torch.export.export(module, (torch.ones(3, device=device),), **dynamic)


@pytest.mark.slow
def test_saved_programs_run_in_a_fresh_process(network: Network, tmp_path: Path, device: torch.device) -> None:
    """They need `import illia_ext` and nothing else of ours.

    The one that AOTInductor compiles is given its keys: of several that a program draws itself, torch 2.11 agrees with
    eager in the first alone.
    """
    module, keys = Draw(device), make_keys(*((i, i) for i in range(7)), device=device)
    torch.export.save(export(network), tmp_path / "exported.pt2")
    of_keys = torch.export.export(module, (keys[:3],), dynamic_shapes={"rows": {0: torch.export.Dim("rows", min=1)}})
    torch._inductor.aoti_compile_and_package(of_keys, package_path=str(tmp_path / "compiled.pt2"))
    torch.save([make_inputs(8, device), keys], tmp_path / "inputs.pt")
    result = run_python(f"""if True:
        import torch, illia_ext
        from test_export import draw
        inputs, keys = torch.load("{tmp_path}/inputs.pt")
        exported = torch.export.load("{tmp_path}/exported.pt2").module()
        compiled = torch._inductor.aoti_load_package("{tmp_path}/compiled.pt2")
        torch.save([draw(exported, inputs), list(compiled(keys))], "{tmp_path}/outputs.pt")""")
    assert result.returncode == 0, result.stderr
    exported, compiled = torch.load(tmp_path / "outputs.pt")
    assert_same(exported, draw(network, make_inputs(8, device)))
    assert_same(compiled, list(module(keys)))
