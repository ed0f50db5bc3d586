"""The picture of regression.py: the prediction over one feature with its band, and coverage of predictive intervals."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from metrics import LEVELS, coverage
from picture import BLUE, GREY, INK, ORANGE, finish, make_figure
from torch import Tensor
from torch.special import ndtri
from training import Contender, Task, Training

__all__ = ["draw"]

FEATURE = 2  # body mass index, the one that alone tells most
BAND = 0.9  # of the predictive distribution
SAMPLES = 200  # of the weights
EDGES = torch.tensor([(1 - BAND) / 2, (1 + BAND) / 2])


def draw(training: Training) -> Figure:
    ours, plain, fixed = training.contenders.items()
    figure = make_figure(14, 5.4)
    prediction, intervals = figure.subplots(1, 2, width_ratios=[1.5, 1])
    plot_prediction(prediction, ours[1], fixed[1], training.task)
    plot_coverage(intervals, dict([fixed, plain, ours]), training.task)
    return figure


def band(means: Tensor, noise: Tensor) -> Tensor:
    """Quantiles [2, cases] of the mixture of normal distributions around means [S, cases]."""
    normals = ndtri((torch.arange(50) + 0.5) / 50)
    return (means + noise * normals[:, None, None]).flatten(0, 1).quantile(EDGES, dim=0)


def plot_prediction(axes: Axes, ours: Contender, fixed: Contender, task: Task) -> None:
    lowest, highest = -4.0, 6.0  # beyond the data, to see there what is not known
    points = torch.linspace(lowest, highest, 201)
    inputs = torch.zeros(len(points), task.inputs.shape[1])  # all other features at their means
    inputs[:, FEATURE] = points
    means = ours.predict(inputs, SAMPLES)
    label = f"{BAND:.0%} of the predictive distribution"
    axes.fill_between(points, *band(means, ours.likelihood.noise), color=BLUE, alpha=0.15, linewidth=0, label=label)
    label = f"{BAND:.0%} of the mean, over the weights"
    axes.fill_between(points, *means.quantile(EDGES, dim=0), color=BLUE, alpha=0.35, linewidth=0, label=label)
    axes.plot(points, means.mean(dim=0), color=BLUE, linewidth=2.5, label="illia_ext, mean")
    fixed_means = fixed.predict(inputs, 1)
    axes.plot(points, fixed_means[0], color=ORANGE, label=f"deterministic, and {BAND:.0%} of its noise")
    for edge in band(fixed_means, fixed.likelihood.noise):
        axes.plot(points, edge, color=ORANGE, linewidth=1, linestyle=":")
    axes.scatter(task.inputs[:, FEATURE], task.targets, 9, color=GREY, alpha=0.6, label="training patients")
    axes.scatter(task.test_inputs[:, FEATURE], task.test_targets, 14, color=INK, label="test patients")
    axes.set(xlabel="body mass index, standard deviations", ylabel="progression, standard deviations")
    axes.set(xlim=(lowest, highest))
    axes.set_title("Prediction for a patient of otherwise average features")
    finish(axes)


def plot_coverage(axes: Axes, contenders: dict[str, Contender], task: Task) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfectly calibrated")
    styles = {"color": ORANGE}, {"color": INK, "linestyle": "--"}, {"color": BLUE, "linewidth": 2.5}
    for (name, contender), style in zip(contenders.items(), styles):
        shares = coverage(contender.outputs, contender.likelihood.noise, task.test_targets)
        axes.plot(LEVELS, shares, label=name, marker=".", **style)
    axes.set(xlabel="level of the predictive interval", ylabel="test patients within")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Calibration")
    finish(axes)
