"""Modules that can hold on to one key."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from illia_ext.random import draw_key, split

__all__ = ["Freezable"]


class Freezable(nn.Module):
    """Draws by `frozen_key` while `frozen`; both are kept in the state_dict, as extra state."""

    frozen_key: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # of a fixed size, and written in place, as DDP and AveragedModel expect of buffers
        device = torch.device("cpu") if device.type == "meta" else device
        self.register_buffer("frozen_key", torch.zeros(2, dtype=torch.int64, device=device), persistent=False)
        self.frozen = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Freezable":
        """The key keeps its value, which the meta device has no place for and to_empty leaves unset."""
        key = self.frozen_key
        super()._apply(fn, recurse)
        if self.frozen_key.is_meta:
            self.frozen_key = key
        else:
            self.frozen_key.copy_(key)
        return self

    def _nested(self) -> list["Freezable"]:
        return [part for part in self.modules() if part is not self and isinstance(part, Freezable)]

    def freeze(self, key: Tensor | None = None) -> None:
        """Every call gives the sample of one key from now on, until `unfreeze`; kept in the state_dict.

        Those inside are frozen too, number i of them to `fold_in(key, i)`.

        Args:
            key: [2]; None draws one from torch's generator.
        """
        if key is None:
            key = draw_key(device=self.frozen_key.device)
        nested = self._nested()
        keys = split(key, len(nested))
        if key.shape != (2,):
            raise ValueError(f"key: expected shape [2], got {list(key.shape)}")
        for part, part_key in zip([self, *nested], [key, *keys]):
            part.frozen_key.copy_(part_key)
            part.frozen = True

    def unfreeze(self) -> None:
        """Every call draws again."""
        for part in [self, *self._nested()]:
            part.frozen = False

    def get_extra_state(self) -> Tensor:
        """[3], int64: whether the weights are frozen, and the key's two words; of one shape, frozen or not."""
        return torch.cat([self.frozen_key.new_full([1], self.frozen), self.frozen_key])

    def set_extra_state(self, state: Tensor) -> None:
        if not state.is_meta:  # which has no values
            self.frozen_key.copy_(state[1:])
            self.frozen = bool(state[0])
