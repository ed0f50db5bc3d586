"""The ops on DTensors: each rank works on its own shards and draws the noise of their places in the whole tensor.

mu and rho lie alike, and say how the work is split; x, gradients and priors that lie otherwise are redistributed. A
sample is placed as mu is, log_prob is Partial where mu is sharded, and a gradient to a prior comes as the prior lies.
Beside that redistribution only gradients to priors that shards share are communicated: they are summed.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from illia_ext._checks import broadcasts
from illia_ext._ops.fake import op
from illia_ext._ops.foreach import DECOMPOSED

__all__: list[str] = []  # importing it registers the rules

_PRIORS = ("mu_prior", "std_prior")
_LIKE_MU = ("mu", "rho", "x", "grad_x")  # each [*shape]; x and grad_x also [S, *shape]
_OUTPUTS = {
    "standard_normal": ("eps",),  # of keys alone, which are replicated: so is it
    "gaussian_sample": ("x",),
    "gaussian_sample_backward": ("rho",),
    "gaussian_log_prob": ("log_prob",),
    "gaussian_log_prob_backward": ("x", "mu", "rho", *_PRIORS),
    "gaussian_sample_and_log_prob": ("x", "log_prob"),
    "gaussian_sample_and_log_prob_backward": ("mu", "rho", *_PRIORS),
    "gaussian_kl_divergence": ("log_prob",),
    "gaussian_kl_divergence_backward": ("mu", "rho", *_PRIORS),
}


class Layout:
    """How the tensors of a call lie on a mesh, as mu does: this rank has the block `size` from index `origin` on."""

    def __init__(self, name: str, mu: DTensor) -> None:
        self.name = name  # of the argument that stands for mu
        self.mesh = mu.device_mesh
        self.placements = mu.placements
        self.full_size = list(mu.shape)
        self.size, self.origin = list(mu.shape), [0] * mu.dim()
        coordinate = self.mesh.get_coordinate()
        if coordinate is None:
            raise RuntimeError(f"{name}: expected a mesh with this rank on it, got {self.mesh}")
        for placement, parts, part in zip(self.placements, self.mesh.shape, coordinate):
            if type(placement) is Shard:  # torch.chunk's parts: all equal but for the last ones
                dim = placement.dim
                chunk = -(-self.size[dim] // parts)
                start = min(chunk * part, self.size[dim])
                self.origin[dim] += start
                self.size[dim] = min(chunk, self.size[dim] - start)
            elif not placement.is_replicate():
                raise RuntimeError(f"{name}: expected to be sharded or replicated, got {placement!r}; redistribute it")

    @property
    def block(self) -> dict[str, list[int]]:
        is_sharded = any(placement.is_shard() for placement in self.placements)
        return {"full_size": self.full_size, "origin": self.origin} if is_sharded else {}

    def placements_of(self, name: str, shape: Sequence[int], shared: Placement) -> tuple[Placement, ...]:
        """Of a tensor of the call; `shared` is for mesh dimensions that shard mu along what this one does not have."""
        shift = len(shape) - len(self.full_size)

        def beside(dim: int) -> Placement:
            is_along = name in _LIKE_MU or (name in _PRIORS and dim + shift >= 0 and shape[dim + shift] != 1)
            return Shard(dim + shift) if is_along else shared

        return tuple(beside(p.dim) if isinstance(p, Shard) else Replicate() for p in self.placements)

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Of the whole tensor: the shards alone could fit on some ranks only, and the others would wait for them."""
        fits = True
        if name in _LIKE_MU:
            fits = list(shape[max(len(shape) - len(self.full_size), 0) :]) == self.full_size
        elif name in _PRIORS and math.prod(shape) != 1:
            fits = broadcasts(shape, self.full_size)
        if not fits:
            raise RuntimeError(f"{name}: expected a shape as {self.name} has it, {self.full_size}, got {list(shape)}")

    def local(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of an argument."""
        if not isinstance(tensor, DTensor) and name in _PRIORS and tensor.numel() == 1:
            return tensor
        self.check_shape(name, tensor.shape)
        placements = self.placements_of(name, tensor.shape, Replicate())
        if not isinstance(tensor, DTensor):
            raise RuntimeError(
                f"{name}: expected a DTensor, as {self.name} is, got a plain tensor; torch.distributed.tensor."
                f"distribute_tensor({name}, {self.name}.device_mesh, {list(placements)}) makes one of rank 0's"
            )
        if tensor.device_mesh != self.mesh:
            raise RuntimeError(f"{name}: expected the mesh of {self.name}, {self.mesh}, got {tensor.device_mesh}")
        if tensor.placements != placements:
            if name in ("key", "rho"):
                expected = f"{placements} beside {self.name} with {self.placements}"
                raise RuntimeError(f"{name}: expected placements {expected}, got {tensor.placements}")
            detached: Any = tensor.detach()  # because torch 2.11 cannot redistribute a leaf below autograd
            local: Tensor = detached.redistribute(placements=placements).to_local()
        else:
            local = tensor.to_local()
        if name in _LIKE_MU and list(local.shape[local.dim() - len(self.size) :]) != self.size:
            raise RuntimeError(f"{name}: expected a shard of {self.size}, as by torch.chunk, got {list(local.shape)}")
        return local

    def whole(self, name: str, local: Tensor, shared: Placement, prior: Tensor | None = None) -> Tensor:
        """Of a result this rank's part of which is `local`; `prior` is the one whose gradient it is."""
        shape = list(local.shape)
        if name in _LIKE_MU:
            shape[local.dim() - len(self.full_size) :] = self.full_size
        elif prior is not None:
            shape = list(prior.shape)
        stride = tuple(math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))
        placements = self.placements_of(name, shape, shared)
        whole = DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )
        if prior is None:
            return whole
        return whole.redistribute(placements=prior.placements) if isinstance(prior, DTensor) else whole.full_tensor()


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
        if leader != "key" and given.get(name) is not None:
            raise RuntimeError(f"{name}: follows from the placements of {leader}; leave it out, got {given[name]}")
    outputs = _OUTPUTS[overload._schema.name.split("::")[1]]
    asked = given.get("output_mask") or [name not in _PRIORS or given.get("prior_grads", False) for name in outputs]
    with torch.no_grad():
        tensors = {name: layout.local(name, value) for name, value in given.items() if isinstance(value, Tensor)}
        results = overload(**{**given, **tensors, **(layout.block if "full_size" in names else {})})
        if isinstance(results, Tensor):
            return layout.whole(outputs[0], results, Partial())
        return tuple(
            layout.whole(name, result, Partial(), given[name] if name in _PRIORS else None)
            if is_asked
            else layout.whole("", result, Replicate())
            for name, result, is_asked in zip(outputs, results, asked)
        )


def _decompose(cls: type, overload: Any, types: Sequence[type], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An op of many tensors, as the single op on each of them."""
    return DECOMPOSED[overload](*args, **kwargs)


for _name in _OUTPUTS:
    torch.library.register_torch_dispatch(op(_name), DTensor, _rule)
for _overload in DECOMPOSED:
    torch.library.register_torch_dispatch(_overload, DTensor, _decompose)
