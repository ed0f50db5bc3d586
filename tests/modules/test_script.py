"""TorchScript: a scripted, frozen, optimised or loaded module is the module. Copies of other kinds: test_copies.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import illia_like
import pytest
import torch
from helpers import DEVICE, run_python
from module_cases import KEY, assert_same
from torch import Tensor, nn

from illia_ext import GaussianDistribution, replace_distributions

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")
parametrize = pytest.mark.parametrize


class Network(nn.Module):
    """A layer as illia writes it, which draws its weights in forward and is asked for their log_prob later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = illia_like.Linear(4, 3)
        replace_distributions(self.layer)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        outputs = self.layer(inputs)
        log_prob, num_params = self.layer.kl_cost()
        x, log_probs = self.layer.weights_distribution.sample_and_log_prob(2)
        return outputs, log_prob + log_probs.sum() + self.layer.bias_distribution.kl_divergence(), x, num_params


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 20, device=DEVICE).reshape(5, 4)


def draw(network: Any) -> list[Any]:
    torch.manual_seed(5)
    return list(network(inputs()))


def test_scripted_module_refuses_what_the_module_refuses(device: torch.device) -> None:
    scripted = torch.jit.script(GaussianDistribution(3, device=device))
    with pytest.raises(torch.jit.Error, match="num_samples: must be at least 0, got -1"):
        scripted.sample(-1)
    with pytest.raises(torch.jit.Error, match="num_samples: a key says how many samples to draw"):
        scripted.sample(2, KEY)
    assert scripted.sample(2).shape == (2, 3)


PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "scripted": lambda scripted: scripted,
    "frozen": lambda scripted: torch.jit.freeze(scripted.eval()),
    "optimized": lambda scripted: torch.jit.optimize_for_inference(scripted.eval()),
}


def draw_twice(network: Any) -> list[Any]:
    """The second call tells a draw from a constant that was folded."""
    torch.manual_seed(5)
    return [output for _ in range(2) for output in network(inputs())]


@parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_draw_as_the_network(program: Callable[[Any], Any], device: torch.device) -> None:
    network = Network().to(device)
    assert_same(draw_twice(program(torch.jit.script(network))), draw_twice(network))


def test_saved_programs_run_in_a_fresh_process(tmp_path: Path, device: torch.device) -> None:
    """The scripted one trains there as well."""
    network = Network().to(device)
    for name, program in PROGRAMS.items():
        torch.jit.save(program(torch.jit.script(network)), tmp_path / f"{name}.pt")
    result = run_python(f"""if True:
        import torch, illia_ext
        from test_script import PROGRAMS, draw, draw_twice
        networks = {{name: torch.jit.load(f"{tmp_path}/{{name}}.pt") for name in PROGRAMS}}
        draws = [draw_twice(network) for network in networks.values()]
        outputs = draw(networks["scripted"])
        (outputs[0].sum() + outputs[1]).backward()
        grads = [parameter.grad for parameter in networks["scripted"].parameters()]
        torch.save([draws, grads], "{tmp_path}/outputs.pt")""")
    assert result.returncode == 0, result.stderr
    draws, grads = torch.load(tmp_path / "outputs.pt")
    for drawn in draws:
        assert_same(drawn, draw_twice(network))
    expected = draw(network)
    (expected[0].sum() + expected[1]).backward()
    assert_same(grads, [parameter.grad for parameter in network.parameters()])
