"""The pages of docs/recipes: their code runs as it stands, is short, and needs what the extras bring."""

import ast
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from illia_ext import mutual_information

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
TOOLKITS = {"torch_uncertainty.md", "probly.md"}  # of the extra `toolkits`; all others are of `integrations`
UNSEEN = {"export.md": {"onnx", "onnxscript"}}  # what torch imports for a page
PACKAGES = {"sklearn": "scikit-learn"}  # where an import is not named as its package

Check = Callable[[ModuleType], None]


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))


def imports_of(page: Path) -> set[str]:
    """Top-level packages that a page needs."""
    nodes = list(ast.walk(ast.parse(code_of(page))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names} | UNSEEN.get(page.name, set())


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels.to(predictions.device)).double().mean().item()


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def assert_sigma_has_grown(bnn: nn.Module, rho_init: float = -5.0) -> None:
    """The loss has a term that widens it: without that rho moves as often down as up."""
    rho = torch.cat([rho.detach().flatten() for rho in bnn.rho.parameters()])
    assert rho.mean() > rho_init + 0.1


def check_lightning(page: ModuleType) -> None:
    assert page.trainer.callback_metrics["accuracy"] > 0.85
    assert page.trainer.global_step == 66  # 6 epochs of 11 batches
    torch.manual_seed(0)
    uninterrupted, _ = page.fit(max_epochs=6)
    assert_equal_states(page.resumed, uninterrupted)
    with pytest.raises(AssertionError):
        assert_equal_states(page.model, uninterrupted)


def check_accelerate(page: ModuleType) -> None:
    assert accuracy(page.probabilities.argmax(-1), page.labels[page.test]) > 0.85
    torch.manual_seed(0)
    page.accelerator.free_memory()
    uninterrupted = page.prepare()
    page.fit(*uninterrupted, epochs=4)
    assert_equal_states(page.bnn, uninterrupted[0])


def check_torch_geometric(page: ModuleType) -> None:
    labels = page.labels[page.test]
    assert accuracy(page.predictions, labels) > 0.75
    is_right = page.predictions == labels
    assert_sigma_has_grown(page.bnn)
    assert page.entropy[is_right].mean() + 0.1 < page.entropy[~is_right].mean()


def check_zuko(page: ModuleType) -> None:
    gaussian = torch.distributions.Normal(page.y_train.mean(0), page.y_train.std(0))
    assert page.log_density.mean() > gaussian.log_prob(page.y_test).sum(-1).mean() + 0.5
    assert page.draws.shape == (20, 112, 2)
    assert_sigma_has_grown(page.bnn)
    with pytest.raises(TypeError, match="would compute later"):
        page.bnn(page.x_test)


def check_safetensors(page: ModuleType) -> None:
    assert_equal_states(page.loaded, page.bnn)
    assert_equal_states(page.tied_loaded, page.tied)
    assert page.tied_loaded.module.head.weight is page.tied_loaded.module.embedding.weight
    tokens, key = torch.arange(50), page.random.key(1)
    assert torch.equal(page.tied_loaded(tokens, key=key)[0], page.tied(tokens, key=key)[0])
    assert torch.equal(page.plain(tokens), page.tied.mean_forward(tokens))
    assert torch.equal(page.converted.mean_forward(tokens), page.tied.mean_forward(tokens))
    with pytest.raises(RuntimeError, match="share memory"):
        page.save_file(page.tied.state_dict(), "refused.safetensors")


def check_export(page: ModuleType) -> None:
    inputs, keys = page.inputs, page.keys
    assert torch.equal(page.sample(inputs[:3]), page.bnn(inputs[:3], key=keys[0])[0])
    assert torch.equal(page.output, page.bnn(inputs[:4], key=keys[1])[0])
    assert torch.equal(page.log_prob, page.bnn(inputs, key=keys[1])[1])
    expected = page.bnn.predict(inputs, key=keys, transform=lambda logits: logits.softmax(-1)).mean
    for name, output, of_torch in (
        ("mean", page.mean, page.bnn.mean_module()(inputs)),
        ("mixture", page.mixture, expected),
    ):
        difference = (torch.from_numpy(output) - of_torch).abs().max()
        assert difference < 1e-5, name


def check_trainer(page: ModuleType) -> None:
    assert_equal_states(page.resumed.model, page.training.model)
    log_probabilities = torch.from_numpy(page.predictions)
    assert accuracy(log_probabilities.argmax(-1), torch.stack([each["labels"] for each in page.data])) > 0.85
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(256))
    assert_sigma_has_grown(page.training.model.bnn)
    bare = page.Trainer(page.training.model.bnn, page.training.args, train_dataset=page.data, eval_dataset=page.data)
    for call in (bare.train, bare.evaluate, lambda: bare.predict([{"input_ids": row} for row in page.ids])):
        with pytest.raises(TypeError, match=r"Trainer\.\w+: expected a model that gives .*recipes/trainer.md"):
            call()


def check_generate(page: ModuleType) -> None:
    first, second, _ = page.texts
    with page.bnn.sampled(page.random.split(page.random.key(0), 3)[0]):
        again = page.bnn.module.generate(page.prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(again, first)
    assert not torch.equal(first, second)
    assert first.shape == (1, 11)
    with pytest.raises(RuntimeError, match=r"with bnn.sampled.*recipes/generate.md"):
        page.bnn.generate(page.prompt)


def check_lora(page: ModuleType) -> None:
    assert accuracy(page.prediction.mean.argmax(-1), page.labels) > 0.85
    names = [name for name, _, _ in page.bnn.named_gaussians()]
    assert len(names) == 4 and all("lora_A" in name for name in names)  # two layers, query and value
    assert page.bnn.module is page.model
    trained = [name for name, weight in page.model.named_parameters() if weight.requires_grad]
    assert trained and all("lora" in name or "classifier" in name for name in trained)
    assert_sigma_has_grown(page.bnn, -4.0)


def check_torch_uncertainty(page: ModuleType) -> None:
    metrics = page.trainer.callback_metrics
    assert metrics["test/cls/Acc"] > 0.85 and metrics["ood/AUROC"] > 0.5


def check_probly(page: ModuleType) -> None:
    logits = page.bnn.predict(page.images[page.test]).samples
    assert accuracy(logits.softmax(-1).mean(0).argmax(-1), page.labels[page.test]) > 0.85
    doubt = page.mutual_information(logits.double().softmax(-1).transpose(0, 1).numpy(), base=math.e)
    torch.testing.assert_close(torch.from_numpy(doubt), mutual_information(logits.double()))
    assert (
        page.out_of_distribution_detection(page.mutual_information(page.known), page.mutual_information(page.rotated))
        > 0.5
    )


CHECKS: dict[str, Check] = {
    "accelerate.md": check_accelerate,
    "export.md": check_export,
    "generate.md": check_generate,
    "lightning.md": check_lightning,
    "lora.md": check_lora,
    "probly.md": check_probly,
    "safetensors.md": check_safetensors,
    "torch_geometric.md": check_torch_geometric,
    "torch_uncertainty.md": check_torch_uncertainty,
    "trainer.md": check_trainer,
    "zuko.md": check_zuko,
}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, without Accelerate's global state of another page."""
    monkeypatch.chdir(tmp_path)
    random_state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
    torch.set_rng_state(random_state)
    accelerate: Any = sys.modules.get("accelerate.state")
    if accelerate:
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.GradientState._reset_state()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")  # the frameworks' own
def test_recipe(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in sorted(imports_of(page)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{page.name}: {package} is not installed")
    module = ModuleType(f"recipe_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # pickle finds its classes there
    torch.manual_seed(0)
    exec(compile(code_of(page), str(page), "exec"), vars(module))
    CHECKS[page.name](module)


def test_each_page_has_a_check() -> None:
    assert set(CHECKS) == {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipe_is_short(page: Path) -> None:
    lines = [line for line in code_of(page).splitlines() if line.strip() and not line.strip().startswith("#")]
    assert 0 < len(lines) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extra_brings_what_a_recipe_imports(page: Path) -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["toolkits" if page.name in TOOLKITS else "integrations"]
    brought = {re.split(r"[^\w.-]", requirement)[0] for requirement in [*extras, *project["dependencies"]]}
    imported = imports_of(page) - set(sys.stdlib_module_names) - {"illia_ext"}
    assert {PACKAGES.get(name, name.replace("_", "-")) for name in imported} <= brought
