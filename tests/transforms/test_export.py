"""torch.export and AOTInductor: an exported program draws what its module draws, here and in a fresh interpreter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_keys, run_python
from torch import Tensor, nn
from transform_cases import Layer, assert_same_bits, make_hidden, with_gradients

from illia_ext import GaussianDistribution

parametrize = pytest.mark.parametrize


@pytest.fixture(scope="module")
def layer(device: torch.device) -> Layer:
    torch.manual_seed(0)
    return Layer().to(device)


def export(layer: Layer, strict: bool = True) -> torch.export.ExportedProgram:
    """For every number of rows."""
    shapes = {"hidden": {0: torch.export.Dim("batch", min=1, max=64)}}
    hidden = make_hidden(5, layer.bias.mu.device)
    return torch.export.export(layer, (hidden,), dynamic_shapes=shapes, strict=strict)


def draw(layer: Callable[..., Any], hidden: Tensor) -> list[Tensor]:
    """Two calls after one seed: the second tells a draw from a constant."""
    torch.manual_seed(5)
    return [layer(hidden) for _ in range(2)]


@parametrize("strict", [True, False])
def test_an_exported_layer_is_the_layer(strict: bool, layer: Layer, device: torch.device) -> None:
    exported = export(layer, strict).module()
    for batch in (5, 8, 1):
        assert_same_bits(draw(exported, make_hidden(batch, device)), draw(layer, make_hidden(batch, device)))
    gradients = []
    for module in (exported, layer):
        leaves = [module.get_parameter(name) for name, _ in layer.named_parameters()]
        gradients.append(with_gradients(draw(module, make_hidden(5, device)), leaves))
    assert_same_bits(*gradients)


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
    assert_same_bits(exported(keys), module(keys))
    with pytest.raises(torch._dynamo.exc.UserError, match="rows"):
        torch.export.export(module, (torch.ones(3, device=device),), **dynamic)


@pytest.mark.slow
def test_saved_programs_run_in_a_fresh_process(layer: Layer, tmp_path: Path, device: torch.device) -> None:
    """They need `import illia_ext` and nothing else of ours.

    The one that AOTInductor compiles is given its keys: of several that a program draws itself, torch 2.11 agrees with
    eager in the first alone.
    """
    module, keys = Draw(device), make_keys(*((i, i) for i in range(7)), device=device)
    torch.export.save(export(layer), tmp_path / "exported.pt2")
    of_keys = torch.export.export(module, (keys[:3],), dynamic_shapes={"rows": {0: torch.export.Dim("rows", min=1)}})
    torch._inductor.aoti_compile_and_package(of_keys, package_path=str(tmp_path / "compiled.pt2"))
    torch.save([make_hidden(8, device), keys], tmp_path / "inputs.pt")
    result = run_python(f"""if True:
        import torch, illia_ext
        from test_export import draw
        inputs, keys = torch.load("{tmp_path}/inputs.pt")
        exported = torch.export.load("{tmp_path}/exported.pt2").module()
        compiled = torch._inductor.aoti_load_package("{tmp_path}/compiled.pt2")
        torch.save([draw(exported, inputs), compiled(keys)], "{tmp_path}/outputs.pt")""")
    assert result.returncode == 0, result.stderr
    exported, compiled = torch.load(tmp_path / "outputs.pt")
    assert_same_bits(exported, draw(layer, make_hidden(8, device)))
    assert_same_bits(compiled, module(keys))
