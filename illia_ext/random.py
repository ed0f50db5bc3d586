"""Keys: the only state of our noise.

A key holds two 64-bit words, `[seed, offset]`: shape [2] for one sample, [S, 2] for S samples. Noise is a pure
function of the key (Philox4x32-10), in the stream of PyTorch's own stateless generator, `torch.func._random`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.module_tracker import ModuleTracker

from illia_ext._checks import check_count, check_int64, check_key

__all__ = ["advance", "draw_key", "fold_in", "key", "split"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, asked without the import of that class, which takes half a second."""
    return hasattr(tensor, "device_mesh")


def philox4x32(seed: Tensor, counter: Tensor) -> list[Tensor]:
    """The four 32-bit words of block `counter` of the stream of `seed`, by Salmon et al. (2011).

    Args:
        seed, counter: int64 tensors that broadcast; their 64 bits are read as unsigned.

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2^32).
    """
    if _is_distributed(seed) or _is_distributed(counter):  # torch returns a DTensor that it should shift unchanged
        raise TypeError("seed, counter: expected plain tensors, got a DTensor; its full_tensor() is one")
    words = [counter & _WORD, (counter >> 32) & _WORD, torch.zeros_like(counter), torch.zeros_like(counter)]
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap at 2^64, so both halves of the unsigned product are there
        product0, product1 = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            ((product1 >> 32) & _WORD) ^ words[1] ^ key0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ words[3] ^ key1,
            product0 & _WORD,
        ]
        key0, key1 = (key0 + _WEYL[0]) & _WORD, (key1 + _WEYL[1]) & _WORD
    return words


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """The key `[seed, 0]`.

    Args:
        seed: integer in [-2^63, 2^64); a negative one stands for seed + 2^64.
        device: where the key lies; it must be the device of mu.

    Returns:
        int64 tensor of shape [2].
    """
    # filled on the device: a copy of a number from the host would wait, and could not be captured in a graph
    seed_word = torch.full((), check_int64("seed", seed), dtype=torch.int64, device=device)
    return torch.stack([seed_word, torch.zeros_like(seed_word)])


def draw_key(
    num_keys: int | None = None,
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    mesh: Any = None,
) -> Tensor:
    """A key (or `num_keys` of them) drawn from `generator`, by default PyTorch's own: `torch.manual_seed` sets it.

    With `mesh`, a torch.distributed.DeviceMesh, every rank of it must call, and draws; all get what its first rank
    drew, as a replicated DTensor. DTensor parameters on that mesh need such a key.

    Draw outside a region that is checkpointed or compiled if you pass a `generator` of your own, and hand the key in:
    checkpointing restores PyTorch's own generator alone (and not that, with preserve_rng_state=False), and the noise
    of backward would not be the noise of forward.

    Returns:
        int64 tensor of shape [2], or [num_keys, 2].

    Raises:
        RuntimeError: a `generator` in a compiled program, or during backward, where a checkpointed region draws again.
    """
    if generator is not None and (torch.compiler.is_compiling() or ModuleTracker().is_bw):
        raise RuntimeError(
            "generator: expected None in a region that is compiled or that checkpointing runs again, got a "
            "torch.Generator; draw the key before the region and hand it in"
        )
    # torch 2.11 cannot trace the question
    if mesh is not None and not torch.compiler.is_compiling() and not hasattr(mesh, "get_coordinate"):
        raise TypeError(f"mesh: expected a torch.distributed.DeviceMesh, got {mesh!r}")
    if mesh is not None and mesh.get_coordinate() is None:
        raise ValueError(f"mesh: expected one with this rank on it, got {mesh}")
    size = [2] if num_keys is None else [check_count("num_keys", num_keys), 2]
    # `generator=` must be written, also when it is None: without it a compiled program draws other numbers.
    drawn = torch.randint(2**63 - 1, size, generator=generator, device=device)
    return drawn if mesh is None else _share(drawn, mesh)


def _share(key: Tensor, mesh: Any) -> Tensor:
    """The first rank's, replicated: a sum with zeros, because torch.compile cannot trace distribute_tensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate  # here: see _is_distributed

    parts = DTensor.from_local(key * (not any(mesh.get_coordinate())), mesh, [Partial()] * mesh.ndim, run_check=False)
    return parts.redistribute(placements=[Replicate()] * mesh.ndim)


def _fold(key: Any, steps: Tensor) -> Tensor:
    if _is_distributed(key):
        if not all(placement.is_replicate() for placement in key.placements):
            raise ValueError(f"key: expected to be replicated, the same on all ranks, got {key.placements}")
        local = _fold(key.to_local(), steps)
        whole: Tensor = type(key).from_local(local, key.device_mesh, key.placements, run_check=False)
        return whole
    words = philox4x32(key[..., 0], key[..., 1] + steps)
    return torch.stack([words[0] | (words[1] << 32), words[2] | (words[3] << 32)], dim=-1)


def split(key: Tensor, n: int = 2) -> Tensor:
    """n independent keys, `fold_in(key, 0)` to `fold_in(key, n - 1)`.

    Returns:
        int64 tensor of shape [n, *key.shape].
    """
    key = check_key(key).to(torch.int64)
    steps = torch.arange(check_count("n", n), device=key.device)
    return _fold(key, steps.reshape([-1, *[1] * (key.dim() - 1)]))


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The key that Philox block `offset + data` of `key` holds; each key of a batch is folded on its own.

    Args:
        key: [..., 2], int64 or uint64.
        data: integer in [-2^63, 2^64) or an integer tensor with one element, such as a step or a layer's number.

    Returns:
        int64 tensor of key's shape.
    """
    key = check_key(key).to(torch.int64)
    if not isinstance(data, Tensor):
        # filled on the device, without waiting
        return _fold(key, torch.full((), check_int64("data", data), dtype=torch.int64, device=key.device))
    if data.numel() != 1 or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data: expected one integer, got a tensor of {data.dtype} and shape {list(data.shape)}")
    return _fold(key, data.to(torch.int64).reshape(()))


def advance(key: Tensor, blocks: int | torch.SymInt) -> Tensor:
    """The key of what lies `blocks` Philox blocks further on in the stream of `key`: its offset moved on, mod 2^64.

    A block holds two normals for float64 parameters and four for the others, and each tensor starts with a new one.

    Args:
        key: [..., 2], int64 or uint64.
        blocks: integer in [-2^63, 2^64).

    Returns:
        int64 tensor of key's shape.
    """
    # int() of a symbol would be a guard
    number: Any = blocks if isinstance(blocks, torch.SymInt) else check_int64("blocks", blocks)
    key = check_key(key).to(torch.int64)
    return torch.stack([key[..., 0], key[..., 1] + number], dim=-1)
