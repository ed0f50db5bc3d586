"""The examples: what they compare with, their figures, and their command line."""

import importlib
import math
import re
import textwrap
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from illia_ext import BayesianModule
from illia_ext.functional import gaussian_log_prob

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch, cpu: torch.device) -> Iterator[None]:
    for package in ("matplotlib", "rich", "sklearn"):  # of the extra `demo`
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_plain_network_adds_up_the_same_density() -> None:
    from plain import PlainBayesian

    network = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    bayesian = PlainBayesian(network, std_prior=0.4, rho_init=-1.0)
    weights, log_prob = bayesian(torch.eye(4, dtype=torch.float64), num_samples=5)  # its outputs are its weights
    rho = torch.full((3, 4), -1.0, dtype=torch.float64)
    torch.testing.assert_close(log_prob, gaussian_log_prob(weights.mT, network.weight, rho, 0.0, 0.4))


def test_classification() -> None:
    """Four predictions of 80 %, half of them right, and four of 60 %, all right."""
    from metrics import classification

    samples = [[[sure, 1 - sure]] * 4 + [[0.6, 0.4]] * 4 for sure in (0.9, 0.7)]
    figures = classification(torch.tensor(samples).log(), torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]))
    nll = -(2 * math.log(0.8) + 2 * math.log(0.2) + 4 * math.log(0.6)) / 8
    # the logits are float32
    assert list(figures.values()) == pytest.approx([75, nll, 100 * (0.3 + 0.4) / 2], rel=1e-5)


def test_regression() -> None:
    from metrics import LEVELS, regression

    torch.manual_seed(0)
    num_cases = 20_000
    means, noise = torch.tensor([[-1.0], [1.0]]).expand(2, num_cases), torch.tensor(0.5)
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), Normal(means[:, 0], noise))
    targets = mixture.sample((num_cases,))
    figures = regression(means, noise, targets)
    assert figures["nll, nats"] == pytest.approx(-float(mixture.log_prob(targets).mean()), rel=1e-5)  # float32
    # five standard errors: of a share at its largest, and of the mean square, whose variance is that of (±1 + noise)^2
    assert figures["calibration error, %"] < 100 * 5 * 0.5 / math.sqrt(num_cases)
    assert figures["rms error"] ** 2 == pytest.approx(1.25, abs=5 * math.sqrt((4 * 0.25 + 2 * 0.25**2) / num_cases))
    assert regression(means, noise, means[0] + 20)["nll, nats"] == pytest.approx(
        18.0**2 * 2, rel=1e-2
    )  # no density is 0
    medians = regression(means, noise, torch.zeros(num_cases))  # in every interval
    assert medians["calibration error, %"] == pytest.approx(100 * float(1 - LEVELS.mean()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "--epochs: expected a whole number from 1 to 10000, got '0'"),
        (["--output", "band.txt"], "--output: expected a file name that ends in one of jpg, pdf, png, svg"),
        (["--output", "no such folder/band.png"], "--output: cannot write 'no such folder/band.png': No such file"),
        (["--seed", "1", "--epoch", "2"], "unrecognized arguments: --epoch 2"),
    ],
)
def test_wrong_options(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import regression

    monkeypatch.setattr("sys.argv", ["regression.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        regression.main()
    output, errors = capsys.readouterr()
    assert exit.value.code == 2
    assert output == "" and errors.count("\n") == 1 and errors.startswith("regression.py: ") and sentence in errors


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import regression

    picture = tmp_path / "band.png"
    options = ["--epochs", "1", "--seeds", "2", "--samples", "3", "--output", str(picture)]
    monkeypatch.setattr("sys.argv", ["regression.py", *options])
    monkeypatch.setenv("COLUMNS", "80")
    assert regression.main() == 0
    lines = capsys.readouterr().out.splitlines()
    for name, columns in (("illia_ext", 3), ("plain PyTorch", 3), ("deterministic", 3), ("difference", 3)):
        assert [line.count("±") for line in lines if line.startswith(f"{name}  ")] == [columns]
    assert "nan" not in "".join(lines)
    assert not any("…" in line for line in lines)  # 80 columns hold the table
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_small_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bayesian_torch")
    import uci_regression as example

    page = tmp_path / "page.md"
    page.write_text(f"Words.\n{example.MARK}Old tables.\n")
    options = ["--data", "diabetes", "--splits", "2", "--epochs", "1", "--samples", "2", "--page", str(page)]
    monkeypatch.setattr("sys.argv", ["uci_regression.py", *options])
    monkeypatch.setenv("COLUMNS", "80")
    assert example.main() == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*example.METHODS, "deep ensemble", "deterministic"):
        assert sum(line.startswith(f"{name}  ") for line in lines) == 3  # errors, likelihoods, and KL with time
    assert not any("…" in line or "nan" in line for line in lines)
    text = page.read_text()
    assert text.startswith(f"Words.\n{example.MARK}") and "Old" not in text and text.count("\n|--") == 3


def test_marks() -> None:
    """The best, and what is as good: differences split by split tell more than two standard errors do."""
    from uci_regression import shown

    errors = {"best": [1.0, 5.0], "as good": [1.2, 4.9], "always worse": [1.1, 5.1]}
    cells = shown(errors, 1, -1, "**{}**")
    assert cells == {"best": "**3.0 ± 2.0**", "as good": "**3.1 ± 1.9**", "always worse": "3.1 ± 2.0"}


def test_a_terminal_holds_the_comparison() -> None:
    import uci_regression as example
    from rich.console import Console

    figures = example.Figures(57.43, -5.48, (9.0, 2.0, 1.9), 1.05)
    console = Console(file=StringIO(), width=80)
    example.report(console, {data: 2 * [dict.fromkeys(example.METHODS, figures)] for data in example.DATA}, False)
    cells = re.findall(r"57.43 ± 0.00|-5.48 ± 0.00", console.file.getvalue())
    assert len(cells) == 2 * len(example.DATA) * len(example.METHODS)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import uci_regression as example

    monkeypatch.setattr(example, "find_spec", lambda module: None)
    monkeypatch.setattr("sys.argv", ["uci_regression.py"])
    with pytest.raises(SystemExit):
        example.main()
    message = "uci_regression.py: bayesian-torch is missing: pip install bayesian-torch\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["continual", "pruning"])
def test_what_follows_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, picture = importlib.import_module(name), tmp_path / "picture.png"
    options = ["--epochs", "1", "--seeds", "2", "--samples", "2", "--output", str(picture)]
    monkeypatch.setattr("sys.argv", [f"{name}.py", *options])
    monkeypatch.setenv("COLUMNS", "80")
    assert example.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    columns = len(example.TASKS if name == "continual" else example.SHARES)
    assert [line.count("±") for line in lines] == [columns] * 3 and not any("…" in line for line in lines)
    if name == "continual":
        assert lines[0].split("prior")[1] != lines[1].split("prior")[1]  # the posterior was carried on
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pruning_takes_the_least_first() -> None:
    from pruning import pruned

    growing = torch.linspace(-9, 3, 100).view(10, 10)
    bnn = BayesianModule(nn.Linear(10, 10), rho_init=lambda name, w: growing if name == "weight" else -9.0)
    with torch.no_grad():
        bnn.module.weight.fill_(0.5)
        bnn.module.bias.fill_(100.0)
    assert torch.equal(pruned(bnn, "|mu| / sigma", 0.5).weight == 0, torch.arange(100).view(10, 10) >= 45)
    with torch.no_grad():
        bnn.module.weight[3, 4] = 0.1
    assert (pruned(bnn, "|mu|", 0.01).weight == 0).nonzero().tolist() == [[3, 4]]
    assert bnn.module.weight.count_nonzero() == 100


@pytest.mark.parametrize("place", ["README.md", "illia_ext"])
def test_code_that_users_read_first(place: str) -> None:
    """Of README the blocks up to a layer's own weights, with one epoch."""
    if place == "README.md":
        blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / place).read_text(), re.DOTALL)[:3]
        code = "\n".join(blocks).replace("range(30)", "range(1)")
    else:
        block = re.search(
            r"two lines.*?:\n\n(    .*?\n)\n`help", importlib.import_module(place).__doc__ or "", re.DOTALL
        )
        assert block is not None
        code = textwrap.dedent(block[1])
    names: dict[str, Any] = {}
    exec(code, names)
    probabilities = names["probabilities"]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(probabilities)))
    assert names["bnn"].training is False and names["nll"].isfinite() and names["log_prob"].isfinite().all()


def test_code_of_the_page_on_priors() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "priors.md").read_text(), re.DOTALL):
        exec(block, names)
        names["bnn"](torch.randn(4, 20))[1].backward()
    assert names["bnn"].prior.get_submodule("0.weight").log_scale.grad.abs() > 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([161 * math.exp(-0.0005 * step) for step in range(100)], False),  # on its way, however slowly
        ([4.6, 4.6], False),  # hardly begun
        ([4.6] + 99 * [0.4], True),
        ([4.6, *(0.4 * math.exp(0.02 * step) for step in range(99))], False),  # it rises
        ([4.6, *(2.0 - 0.004 * step for step in range(100))], True),
        ([4.6, *(2.0 - 0.006 * step for step in range(100))], False),  # by 0.06 nats a tenth
    ],
)
def test_a_posterior_that_has_been_reached(values: list[float], expected: bool) -> None:
    from report import levelling
    from training import last_tenths

    before, last = last_tenths(values)
    tenth = max(1, len(values) // 10)
    assert last == pytest.approx(sum(values[-tenth:]) / tenth)
    assert before == pytest.approx(sum(values[-2 * tenth : -tenth]) / tenth)
    text = levelling("it", values[0], before, last)
    assert text.startswith("KL/data of it has levelled off:" if expected else "KL/data of it has not levelled off,")
    assert last_tenths([3.0]) == (3.0, 3.0)


def test_what_networks_are_compared_with() -> None:
    """The same prior: in the sum of plain PyTorch, and as a penalty on fixed weights; foreign inputs are rotated."""
    from digits import digits_task
    from plain import FixedWeights, PlainBayesian
    from training import Contender

    network = nn.Linear(64, 10)
    rho = torch.full((10, 64), -5.0)
    ours, plain = BayesianModule(network, select=["weight"]), PlainBayesian(network)
    assert plain.std_prior == ours.std_prior.item() and torch.equal(plain.rho[0], rho)
    assert torch.equal(ours.rho.weight, rho)
    task = digits_task(1, 0)
    penalties = [group["weight_decay"] for group in Contender(FixedWeights(network), task).optimizer.param_groups]
    assert penalties == [1 / len(task.inputs), 0]
    assert task.foreign_inputs is not None
    assert torch.equal(task.foreign_inputs.transpose(2, 3).flip(3), task.test_inputs)
    assert abs(task.inputs.mean()) < 1e-6 and task.inputs.std().item() == pytest.approx(1, abs=1e-4)


def test_separation() -> None:
    """By what samples disagree in, and of fixed weights by entropy."""
    from metrics import separation

    sure, torn = torch.tensor([[9.0, 0.0]]), torch.tensor([[1.5, 0.0]])
    known, foreign = sure.expand(2, 6, 2), torch.stack([sure, -sure]).expand(2, 6, 2)
    assert separation(known, foreign) == 1 and separation(foreign, known) == 0
    assert separation(known[:1], torn.expand(1, 6, 2)) == 1 and separation(known, known) == 0.5
