"""Dropout of elements (Srivastava 2014)."""

import torch
from torch import nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """nn.Dropout, more than twice as fast on CPU.

    PyTorch draws a number of 24 bits for each element there, which takes longer than all else; here each gets 16 bits
    of the same generator, so that the probability is rounded to a multiple of 2^-16.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elements are 0 with probability `p` and x / (1 - p) else, of any shape; x itself outside of training."""
        dropped = round(self.p * _LEVELS)
        plain = not self.training or not 0 < dropped < _LEVELS
        if plain or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        count = x.numel()
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = drawn.view(torch.int16)[:count].view(x.shape)
        return x * (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
