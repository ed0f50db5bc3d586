"""The picture of digits.py: loss over epochs, calibration, and the digits that the network is least sure of."""

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from metrics import reliability
from picture import BLUE, GREY, INK, ORANGE, finish, make_figure
from torch import Tensor
from training import Contender, Task, Training

from illia_ext import mutual_information, predictive_entropy

__all__ = ["draw"]


def draw(training: Training) -> Figure:
    ours, plain, fixed = training.contenders.items()
    figure = make_figure(16, 5.4)
    loss, calibration, digits = figure.subfigures(1, 3, width_ratios=[1, 1.05, 1], wspace=0.03, squeeze=False)[0]
    plot_loss(loss, dict([ours, plain]), training.task.epochs)
    plot_calibration(calibration, dict([fixed, ours]), training.task)
    plot_least_sure(digits, ours[1].outputs, training.task)
    return figure


def probabilities(contender: Contender) -> Tensor:
    return contender.outputs.softmax(dim=-1).mean(dim=0)


def plot_loss(figure: SubFigure, contenders: dict[str, Contender], epochs: int) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    styles = {"color": BLUE, "linewidth": 3}, {"color": INK, "linestyle": ":"}
    for (name, contender), style in zip(contenders.items(), styles):
        losses = torch.tensor(contender.losses).reshape(epochs, -1, 2).mean(dim=1)
        for axes, values in zip(panels, losses.T):
            axes.plot(range(1, epochs + 1), values, marker=".", label=name, **style)
    panels[0].set(yscale="log", ylabel="nll, nats per image")
    panels[0].set_title("Training loss, and its two parts")
    panels[1].set(ylabel="log_prob / num_data, nats", xlabel="epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        finish(axes)


def plot_calibration(figure: SubFigure, contenders: dict[str, Contender], task: Task) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfectly calibrated")
    for (name, contender), color in zip(contenders.items(), (GREY, BLUE)):
        count, confidence, accuracy = reliability(probabilities(contender), task.test_targets)
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


def plot_least_sure(figure: SubFigure, logits: Tensor, task: Task) -> None:
    """The images of the highest entropy; below each, what part of it more data would take away."""
    figure.suptitle("Least sure of: predicted label, its probability", fontsize=12, fontweight="bold")
    figure.supxlabel("below: nats of entropy, and those due to the weights", fontsize=10)
    confidence, predictions = logits.softmax(dim=-1).mean(dim=0).max(dim=-1)
    entropy, due_to_weights = predictive_entropy(logits), mutual_information(logits)
    least_sure = entropy.argsort(descending=True)[:12]
    for axes, index in zip(figure.subplots(3, 4).flat, least_sure):
        label, prediction = int(task.test_targets[index]), int(predictions[index])
        title = f"{prediction}, {confidence[index]:.0%}"
        axes.imshow(task.test_inputs[index, 0], cmap="gray_r")
        if prediction == label:
            axes.set_title(title, color=BLUE, fontweight="normal")
        else:
            axes.set_title(f"{title} (is {label})", color=ORANGE, fontweight="normal")
        axes.set(xticks=[], yticks=[], xlabel=f"{entropy[index]:.2f}, {due_to_weights[index]:.2f}")
