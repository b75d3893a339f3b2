"""Networks of `tools.networks` without convolutions as PyTorch's users write them, weights fake-quantized at each step."""

from __future__ import annotations

import torch
from torch.nn import functional


def fake_quantized(weight: torch.Tensor) -> torch.Tensor:
    """The weight on 8-bit grids, one for each of its rows, whose scales follow its largest numbers."""
    scale = weight.detach().abs().amax(1).div_(127)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)


class _Linear(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, fake_quantized(self.weight), self.bias)


class _Layer(torch.nn.Module):
    """A layer of a Transformer encoder: attention and GELU as PyTorch has them in one piece."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (_Linear(width, width) for _ in range(4))
        self.up, self.down = _Linear(width, 4 * width), _Linear(4 * width, width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [linear(x).unflatten(2, (self.heads, -1)).mT for linear in (self.query, self.key, self.value)]
        query, key, value = (part.permute(0, 1, 3, 2).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.down(functional.gelu(self.up(x))))


class Encoder(torch.nn.Sequential):
    """`tools.networks.bert`."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__(*(_Layer(width, heads) for _ in range(layers)))


class Recurrent(torch.nn.Module):
    """`tools.networks.recurrent`."""

    def __init__(self, width: int = 256, hidden: int = 256, outputs: int = 32) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(width, hidden, 2, bias=False)
        self.linear = _Linear(hidden, outputs)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Batch first, as the model; the layers take time first."""
        begin = frames.new_zeros(2, len(frames), self.lstm.hidden_size)
        weights = [fake_quantized(weight) for weight in self.lstm.parameters()]
        found, *_ = torch._VF.lstm(frames.transpose(0, 1), (begin, begin), weights, False, 2, 0.0, True, False, False)
        return self.linear(found.transpose(0, 1))
