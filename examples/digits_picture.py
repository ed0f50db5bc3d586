"""The picture of digits.py: loss over epochs, calibration, and what the network says of digits that are rotated."""

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from metrics import reliability
from picture import BLUE, GREY, INK, ORANGE, finish, make_figure
from torch import Tensor
from training import Contender, Task, Training

from illia_ext import mutual_information

__all__ = ["draw"]


def draw(training: Training) -> Figure:
    ours, plain, fixed = training.contenders.items()
    figure = make_figure(19, 5.4)
    widths = [1, 1.05, 0.9, 1]
    loss, calibration, doubt, foreign = figure.subfigures(1, 4, width_ratios=widths, wspace=0.03, squeeze=False)[0]
    plot_loss(loss, dict([ours, plain]), training.task.epochs)
    plot_calibration(calibration, dict([fixed, ours]), training.task)
    plot_doubt(doubt, ours[1])
    plot_foreign(foreign, ours[1], fixed[1], training.task.foreign_inputs)
    return figure


def probabilities(outputs: Tensor) -> Tensor:
    """[cases, classes] of logits [S, cases, classes]."""
    return outputs.softmax(dim=-1).mean(dim=0)


def plot_loss(figure: SubFigure, contenders: dict[str, Contender], epochs: int) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    styles = {"color": BLUE, "linewidth": 3}, {"color": INK, "linestyle": ":"}
    for (name, contender), style in zip(contenders.items(), styles):
        losses = torch.tensor(contender.losses).reshape(epochs, -1, 2).mean(dim=1)
        for axes, values in zip(panels, losses.T):
            axes.plot(range(1, epochs + 1), values, label=name, **style)
    panels[0].set(yscale="log", ylabel="nll, nats per image")
    panels[0].set_title("Training loss, and its two parts")
    panels[1].set(yscale="log", ylabel="log_prob / num_data, nats", xlabel="epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        finish(axes)


def plot_calibration(figure: SubFigure, contenders: dict[str, Contender], task: Task) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfectly calibrated")
    for (name, contender), color in zip(contenders.items(), (GREY, BLUE)):
        count, confidence, accuracy = reliability(probabilities(contender.outputs), task.test_targets)
        # Wilson's interval of one standard deviation
        center = (accuracy * count + 0.5) / (count + 1)
        half = (count * accuracy * (1 - accuracy) + 0.25).sqrt() / (count + 1)
        bars = torch.stack([accuracy - (center - half), center + half - accuracy]).clamp(min=0)
        axes.errorbar(confidence, accuracy, bars, fmt="none", color=color, linewidth=1.5, alpha=0.6)
        axes.scatter(confidence, accuracy, 30 + count, color=color, edgecolor="white", zorder=3)
        axes.scatter([], [], 60, color=color, label=name)
    for x, y, number in zip(confidence, accuracy, count):
        offset = (0, -22) if x > 0.9 else (11, -4)
        axes.annotate(f"{number:.0f}", (float(x), float(y)), offset, textcoords="offset points", color=BLUE)
    axes.set(xlim=(0, 1.05), ylim=(-0.04, 1.05))
    axes.set(xlabel="probability of the predicted label", ylabel="accuracy, with its standard error")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Calibration (numbers: test images)")
    finish(axes)


def plot_doubt(figure: SubFigure, contender: Contender) -> None:
    """How unsure the network is of upright and of rotated digits."""
    axes = figure.subplots()
    doubts = [mutual_information(outputs) for outputs in (contender.outputs, contender.foreign_outputs)]
    bins = torch.linspace(0, max(float(doubt.max()) for doubt in doubts), 31)
    for doubt, label, color in zip(doubts, ("upright", "rotated by 90°"), (BLUE, ORANGE)):
        axes.hist(doubt, bins, color=color, alpha=0.6, label=label)
    axes.set(xlabel="nats, illia_ext", ylabel="number of images")
    axes.set_title("Mutual information of test images")
    finish(axes)


def plot_foreign(figure: SubFigure, ours: Contender, fixed: Contender, inputs: Tensor) -> None:
    """The first rotated digits, with the label that either network gives them."""
    figure.suptitle("Rotated digits, and what they are taken for", fontsize=12, fontweight="bold")
    figure.supxlabel("blue: illia_ext; grey: deterministic", fontsize=10)
    answers = [probabilities(outputs).max(dim=-1) for outputs in (ours.foreign_outputs, fixed.foreign_outputs)]
    for index, axes in enumerate(figure.subplots(3, 4).flat):
        axes.imshow(inputs[index, 0], cmap="gray_r")
        ours_text, fixed_text = (f"{labels[index]}, {shares[index]:.0%}" for shares, labels in answers)
        axes.set_title(ours_text, color=BLUE, fontweight="normal")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(fixed_text, color=GREY)
