"""The ops on DTensors: each rank works on its own shards and draws the noise of their places in the whole tensor.

mu and rho lie alike, and say how the work is split; x, gradients and priors that lie otherwise are redistributed. A
sample is placed as mu is; log_prob, and the gradient to a prior that shards share, is Partial where mu is sharded.
Beside that redistribution only the gradient to a plain prior is communicated: it is summed over the mesh.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from illia_ext.ops import NAMES, op

__all__ = ["Layout"]

_PRIORS = ("mu_prior", "std_prior")
_LIKE_MU = ("mu", "rho", "x", "grad_x")  # each [*shape]; x and grad_x also [S, *shape]
_OUTPUTS = {
    "standard_normal": ("eps",),
    "gaussian_sample": ("x",),
    "gaussian_sample_backward": ("rho",),
    "gaussian_log_prob": ("log_prob",),
    "gaussian_log_prob_backward": ("x", "mu", "rho", *_PRIORS),
    "gaussian_sample_and_log_prob": ("x", "log_prob"),
    "gaussian_sample_and_log_prob_backward": ("mu", "rho", *_PRIORS),
    "gaussian_kl_divergence": ("log_prob",),
    "gaussian_kl_divergence_backward": ("mu", "rho", *_PRIORS),
}


def _refuse(holds: bool, message: str) -> None:
    if holds:
        raise RuntimeError(message)


class Layout:
    """This rank's block of a tensor: `size` elements from index `origin` on, of `full_size`."""

    def __init__(self, name: str, tensor: DTensor) -> None:
        self.name = name
        self.mesh = tensor.device_mesh
        self.full_size = list(tensor.shape)
        self.placements = tensor.placements
        coordinate = self.mesh.get_coordinate()
        if coordinate is None:
            raise RuntimeError(f"{name}: expected a mesh with this rank on it, got {self.mesh}")
        self.size, self.origin = list(tensor.shape), [0] * tensor.dim()
        for placement, parts, part in zip(self.placements, self.mesh.shape, coordinate):
            if type(placement) is Shard:  # torch.chunk's parts: all equal but for the last ones
                dim = placement.dim
                chunk = -(-self.size[dim] // parts)
                start = min(chunk * part, self.size[dim])
                self.origin[dim] += start
                self.size[dim] = min(chunk, self.size[dim] - start)
            else:
                message = f"{name}: placement {placement!r} is not offered; redistribute it to Shard or Replicate"
                _refuse(not placement.is_replicate(), message)
        self.is_sharded = any(placement.is_shard() for placement in self.placements)

    def _map(self, sharded: Any) -> tuple[Placement, ...]:
        return tuple(sharded(p.dim) if isinstance(p, Shard) else Replicate() for p in self.placements)

    def replicated(self) -> tuple[Placement, ...]:
        return self._map(lambda dim: Replicate())

    def summed(self) -> tuple[Placement, ...]:
        """Of a sum over mu's elements."""
        return self._map(lambda dim: Partial())

    def shifted(self, num_dims: int) -> tuple[Placement, ...]:
        """Of a tensor with as many dimensions more, in front."""
        return self._map(lambda dim: Shard(dim + num_dims))

    def of_prior(self, shape: Sequence[int], shared: Placement) -> tuple[Placement, ...]:
        """Of a prior that broadcasts to mu's shape; `shared` is for a mesh dimension whose shards use the same part."""
        missing = len(self.full_size) - len(shape)

        def place(dim: int) -> Placement:
            return Shard(dim - missing) if dim >= missing and shape[dim - missing] != 1 else shared

        return self._map(place)

    def placements_of(self, name: str, shape: Sequence[int]) -> tuple[Placement, ...]:
        if name in _PRIORS:
            return self.of_prior(shape, Replicate())
        if name not in _LIKE_MU:
            return self.replicated()
        message = f"{name}: expected the shape of {self.name}, {self.full_size}, got {list(shape)}"
        _refuse(list(shape[max(len(shape) - len(self.full_size), 0) :]) != self.full_size, message)
        return self.shifted(len(shape) - len(self.full_size))

    def local(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of an argument."""
        if not isinstance(tensor, DTensor):
            if name in _PRIORS and tensor.numel() == 1:
                return tensor
            place = "" if name not in (*_LIKE_MU, *_PRIORS) else f", {list(self.placements_of(name, tensor.shape))}"
            raise RuntimeError(
                f"{name}: expected a DTensor, as {self.name} is, got a plain tensor; "
                f"torch.distributed.tensor.distribute_tensor({name}, {self.name}.device_mesh{place}) makes one of "
                "rank 0's"
            )
        message = f"{name}: expected the mesh of {self.name}, {self.mesh}, got {tensor.device_mesh}"
        _refuse(tensor.device_mesh != self.mesh, message)
        if name == "key":
            message = f"key: expected to be replicated, the same on all ranks of the mesh, got {tensor.placements}"
            _refuse(not all(placement.is_replicate() for placement in tensor.placements), message)
        placements = self.placements_of(name, tensor.shape)
        message = f"rho: expected the placements of {self.name}, {self.placements}, got {tensor.placements}"
        _refuse(name == "rho" and tensor.placements != placements, message)
        if tensor.placements != placements:
            tensor = tensor.redistribute(placements=placements)
        local = tensor.to_local()
        if name in _LIKE_MU:
            size = [*tensor.shape[: tensor.dim() - len(self.size)], *self.size]
            message = f"{name}: expected a shard of shape {size}, as torch.chunk makes it, got {list(local.shape)}"
            _refuse(list(local.shape) != size, message)
        return local

    def whole(self, local: Tensor, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
        stride = tuple(math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)

    def output(self, name: str, local: Tensor, prior: Tensor | None) -> Tensor:
        """The whole of which an op computed this rank's part; `prior` is the one whose gradient this is."""
        if prior is not None:
            placements = self.of_prior(prior.shape, Partial())
            gradient = self.whole(local, placements, prior.shape)
            return gradient if isinstance(prior, DTensor) else gradient.full_tensor()
        if name == "log_prob":
            return self.whole(local, self.summed(), local.shape)
        if name not in _LIKE_MU:
            return self.whole(local, self.replicated(), local.shape)
        samples = local.shape[: local.dim() - len(self.full_size)]
        return self.whole(local, self.shifted(len(samples)), [*samples, *self.full_size])


def _rule(cls: type, overload: Any, types: Sequence[type], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    names = [argument.name for argument in overload._schema.arguments]
    given = {**dict(zip(names, args)), **kwargs}
    leader = next(name for name in ("mu", "rho", "key") if name in given)
    if not isinstance(given[leader], DTensor):
        other = next(name for name, value in given.items() if isinstance(value, DTensor))
        raise RuntimeError(
            f"{other}: expected a plain tensor, as {leader} is, got a DTensor; {other}.full_tensor() makes one"
        )
    layout = Layout(leader, given[leader])
    for name in ("full_size", "origin"):
        message = f"{name}: follows from the placements of {leader}, a DTensor; leave it out, got {given.get(name)}"
        _refuse(leader != "key" and given.get(name) is not None, message)
    outputs = _OUTPUTS[overload._schema.name.split("::")[1]]
    asked = given.get("output_mask") or [name not in _PRIORS or given.get("prior_grads", False) for name in outputs]
    with torch.no_grad():
        block = {"full_size": layout.full_size, "origin": layout.origin}
        local = {
            name: layout.local(name, value) if isinstance(value, Tensor) else value for name, value in given.items()
        }
        results = overload(**local, **(block if layout.is_sharded and "full_size" in names else {}))
        if isinstance(results, Tensor):
            return layout.output(outputs[0], results, None)
        return tuple(
            layout.output(name if keep else "", result, given.get(name) if keep and name in _PRIORS else None)
            for name, result, keep in zip(outputs, results, asked)
        )


for _name in NAMES:
    torch.library.register_torch_dispatch(op(_name), DTensor, _rule)
