"""The recurrent part of the cascade: looks at a pair, remembers earlier looks, proposes a small correction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .convolution import Conv3

__all__ = ["ConvLSTMCell", "CorrectionModule"]


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM (Shi et al., NeurIPS 2015), without peepholes; the forget gate starts open."""

    def __init__(self, spatial_dims: int, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.gates = Conv3(spatial_dims, in_channels + hidden, 4 * hidden)
        nn.init.zeros_(self.gates.conv.bias)
        with torch.no_grad():
            self.gates.conv.bias[hidden : 2 * hidden] = 1.0

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new hidden and cell state, (B, hidden, *S) each, for ``x`` (B, in_channels, *S)."""
        write, forget, read, candidate = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(cell), cell


class CorrectionModule(nn.Module):
    """The SR module of one scale: CNN, ConvLSTM, head that starts at zero (Deng et al., arXiv 2411.02888).

    Args:
        spatial_dims: 2 or 3.
        features: channels of the pyramid at this scale.
        hidden: width of the CNN and of the recurrent state.
        steps: corrections at this scale.
        carried: width of the state that comes up from the next coarser scale; 0 where this is the coarsest.
        recurrent: without the LSTM, the CNN alone decides.
        bound: largest increment in voxels of this scale; 0 leaves it free.
        checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    __constants__ = ("bound", "carries", "recurrent", "steps")

    def __init__(
        self,
        spatial_dims: int,
        features: int,
        hidden: int,
        steps: int,
        carried: int,
        recurrent: bool = True,
        bound: float = 0.4,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.hidden, self.recurrent, self.bound = steps, hidden, recurrent, bound
        self.checkpointing = checkpointing
        self.cnn = nn.Sequential(
            Conv3(spatial_dims, 3 * features + spatial_dims, hidden),
            nn.LeakyReLU(0.2),
            Conv3(spatial_dims, hidden, hidden),
            nn.LeakyReLU(0.2),
        )
        self.memory = ConvLSTMCell(spatial_dims, hidden, hidden) if recurrent else nn.Identity()
        carry = recurrent and carried > 0
        self.carry = Conv[Conv.CONV, spatial_dims](carried, hidden, 1) if carry else nn.Identity()
        self.carries = carry
        self.head = Conv3(spatial_dims, hidden, spatial_dims, bias=False)
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"
        nn.init.zeros_(self.head.conv.weight)

    def begin(self, like: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state at the beginning of this scale: the coarser one's, enlarged, or zeros.

        Args:
            like: (B, C, *S) of this scale.
            hidden: state of the coarser scale; ignored at the coarsest.
            cell: the same.
        """
        if not self.carries:
            zeros = torch.zeros_like(like[:, :1]).expand([like.shape[0], self.hidden] + list(like.shape[2:]))
            return zeros, zeros
        hidden = F.interpolate(self.carry(hidden), scale_factor=2.0, mode=self.mode, align_corners=False)
        cell = F.interpolate(self.carry(cell), scale_factor=2.0, mode=self.mode, align_corners=False)
        return hidden, cell

    def forward(
        self, moved: Tensor, target: Tensor, field: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the velocity increment (B, d, *S) in voxels of this scale, and the new state.

        Args:
            moved: (B, C, *S) features, warped as far as is known.
            target: (B, C, *S) features that they should resemble.
            field: (B, d, *S) displacement so far.
            hidden: (B, hidden, *S).
            cell: (B, hidden, *S).
        """
        if not torch.jit.is_scripting():
            if self.checkpointing and torch.is_grad_enabled():
                return checkpoint(self._correct, moved, target, field, hidden, cell, use_reentrant=False)
        return self._correct(moved, target, field, hidden, cell)

    def _correct(
        self, moved: Tensor, target: Tensor, field: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self.cnn(torch.cat([moved, target, moved - target, field.to(moved.dtype)], dim=1))
        if self.recurrent:
            hidden, cell = self.memory(x, hidden, cell)
            x = hidden
        increment = self.head(x).float()
        if self.bound > 0:
            increment = self.bound * torch.tanh(increment / self.bound)
        return increment, hidden, cell
