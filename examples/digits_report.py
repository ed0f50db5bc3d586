"""What digits.py shows of its classifiers: a table and a picture."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table
from torch import Tensor
from torch.nn.functional import nll_loss

__all__ = ["PICTURE_FORMATS", "Result", "save_picture", "table"]

PICTURE_FORMATS = ("jpg", "pdf", "png", "svg")
BINS = 10  # of confidence, equally wide
WARM_UP = 5  # steps that the median time leaves out
BLUE, ORANGE, GREY, INK = "#2563a8", "#c8501e", "#9aa0a8", "#22262b"


@dataclass
class Result:
    """A trained classifier: its predictions for the test images and the record of its training."""

    name: str
    probabilities: Tensor  # [images, 10], the mean over the samples of the weights
    labels: Tensor  # [images]
    kl_divergence: float  # nats; NaN for a network that is not Bayesian
    seconds: list[float]  # [steps]
    losses: Tensor  # [steps, 2]: nll, log_prob / num_data
    epochs: int

    @property
    def correct(self) -> Tensor:
        return (self.probabilities.argmax(dim=-1) == self.labels).float()

    @property
    def nll(self) -> float:
        return float(nll_loss(self.probabilities.log(), self.labels))

    @property
    def step_ms(self) -> float:
        return 1e3 * median(self.seconds[WARM_UP:])

    def reliability(self) -> tuple[Tensor, Tensor, Tensor]:
        """Number of images, mean confidence and accuracy in the bins of confidence that are not empty."""
        confidence = self.probabilities.amax(dim=-1)
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        count = torch.bincount(bins, minlength=BINS)
        sums = torch.stack([torch.bincount(bins, part, minlength=BINS) for part in (confidence, self.correct)])
        filled = count > 0
        mean_confidence, accuracy = sums[:, filled] / count[filled]
        return count[filled], mean_confidence, accuracy

    def calibration_error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy over all images."""
        count, confidence, accuracy = self.reliability()
        return float((count * (confidence - accuracy).abs()).sum() / count.sum())


def table(results: list[Result]) -> Table:
    ours, reference, point = results
    extra, reference_extra = (result.step_ms - point.step_ms for result in (ours, reference))
    caption = (
        f"Time: median of {len(ours.seconds) - WARM_UP} steps (forward, backward, Adam), the networks taking turns; "
        f"one run on this machine, on one CPU thread. Being Bayesian adds {extra:.1f} ms to a step with illia_ext, "
        f"{reference_extra:.1f} ms in plain PyTorch."
    )
    title = f"Handwritten digits: {len(ours.labels)} test images"
    rows = Table(title=title, caption=caption, caption_justify="left", min_width=72)
    rows.add_column()
    for result in results:
        rows.add_column(result.name, justify="right")
    rows.add_row("test accuracy", *(f"{result.correct.mean():.1%}" for result in results))
    rows.add_row("expected calibration error", *(f"{result.calibration_error():.1%}" for result in results))
    rows.add_row("test negative log likelihood", *(f"{result.nll:.3f}" for result in results))
    kls = [result.kl_divergence for result in results]
    rows.add_row("KL(q || p), nats", *("-" if kl != kl else f"{kl:,.0f}" for kl in kls))
    rows.add_row("time per training step", *(f"[bold]{result.step_ms:.1f} ms[/]" for result in results))
    return rows


def save_picture(path: Path, results: list[Result], images: Tensor) -> None:
    """Three panels: loss over epochs, reliability diagram, the digits that the first result is least sure of."""
    with rc_context({"font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold"}):
        figure = Figure(figsize=(16, 5.4), layout="constrained")
        loss, reliability, digits = figure.subfigures(1, 3, width_ratios=[1, 1.05, 1], wspace=0.03, squeeze=False)[0]
        plot_loss(loss, *results[:2])
        plot_reliability(reliability, results[0], results[2])
        plot_least_sure(digits, results[0], images)
        figure.savefig(path, dpi=130)


def plot_loss(figure: SubFigure, ours: Result, reference: Result) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    for result, style in ((ours, {"color": BLUE, "linewidth": 3}), (reference, {"color": INK, "linestyle": ":"})):
        losses = result.losses.reshape(result.epochs, -1, 2).mean(dim=1)
        for axes, values in zip(panels, losses.T, strict=True):
            axes.plot(range(1, result.epochs + 1), values, marker=".", label=result.name, **style)
    panels[0].set(yscale="log", ylabel="nll, nats per image")
    panels[0].set_title("Training loss, and its two parts")
    panels[1].set(ylabel="log_prob / num_data, nats", xlabel="epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        finish(axes)


def plot_reliability(figure: SubFigure, ours: Result, point: Result) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfectly calibrated")
    for result, color in ((point, GREY), (ours, BLUE)):
        count, confidence, accuracy = result.reliability()
        # Wilson's interval of one standard deviation
        center = (accuracy * count + 0.5) / (count + 1)
        half = (count * accuracy * (1 - accuracy) + 0.25).sqrt() / (count + 1)
        bars = torch.stack([accuracy - (center - half), center + half - accuracy]).clamp(min=0)
        axes.errorbar(confidence, accuracy, bars, fmt="none", color=color, linewidth=1.5, alpha=0.6)
        axes.scatter(confidence, accuracy, 30 + count, color=color, edgecolor="white", zorder=3)
        axes.scatter([], [], 60, color=color, label=f"{result.name}, error {result.calibration_error():.1%}")
    for x, y, number in zip(confidence, accuracy, count, strict=True):
        offset = (0, -22) if x > 0.9 else (11, -4)
        axes.annotate(f"{number:.0f}", (float(x), float(y)), offset, textcoords="offset points", color=BLUE)
    axes.set(xlim=(0, 1.05), ylim=(-0.04, 1.05))
    axes.set(xlabel="probability of the predicted label", ylabel="accuracy, with its standard error")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Calibration (numbers: test images)")
    finish(axes)


def plot_least_sure(figure: SubFigure, result: Result, images: Tensor) -> None:
    figure.suptitle("Least sure of: predicted label, its probability", fontsize=12, fontweight="bold")
    confidence, predictions = result.probabilities.max(dim=-1)
    least_sure = confidence.argsort()[:12]
    for axes, index in zip(figure.subplots(3, 4).flat, least_sure, strict=True):
        label, prediction = int(result.labels[index]), int(predictions[index])
        title = f"{prediction}, {confidence[index]:.0%}"
        axes.imshow(images[index].reshape(8, 8), cmap="gray_r")
        if prediction == label:
            axes.set_title(title, color=BLUE, fontweight="normal")
        else:
            axes.set_title(f"{title} (is {label})", color=ORANGE, fontweight="normal")
        axes.set(xticks=[], yticks=[])


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
