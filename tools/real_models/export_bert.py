"""The sentence embedder all-MiniLM-L6-v2: BERT (Devlin et al. 2019) with 6 layers, and the mean over the words of a sentence."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from onnxqat.export.torch import export as export_torch

WORDS, POSITIONS, SIZE, INNER, HEADS, LAYERS = 30522, 512, 384, 1536, 12, 6
#: Tokens of a sentence, padding included.
LENGTH = 32


class Embeddings(nn.Module):
    """Words and their positions [N, LENGTH] → [N, LENGTH, SIZE]."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, SIZE)
        self.position_embeddings = nn.Embedding(POSITIONS, SIZE)
        self.token_type_embeddings = nn.Embedding(2, SIZE)
        self.LayerNorm = nn.LayerNorm(SIZE, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        places = self.position_embeddings.weight[: tokens.shape[1]] + self.token_type_embeddings.weight[0]
        normalized: Tensor = self.LayerNorm(self.word_embeddings(tokens) + places)
        return normalized


class Layer(nn.Module):
    """Self-attention and a feed-forward network, normalized after each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(SIZE, SIZE) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(SIZE, SIZE), "LayerNorm": nn.LayerNorm(SIZE, eps=1e-12)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(SIZE, INNER)})
        self.output = nn.ModuleDict({"dense": nn.Linear(INNER, SIZE), "LayerNorm": nn.LayerNorm(SIZE, eps=1e-12)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, LENGTH, SIZE] and what is added to attention scores [N, 1, 1, LENGTH] → [N, LENGTH, SIZE]."""
        own, after = self.attention["self"], self.attention["output"]
        query, key, value = (
            own[name](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / (SIZE // HEADS) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = after["LayerNorm"](x + after["dense"](mixed))
        inner = functional.gelu(self.intermediate["dense"](x))
        normalized: Tensor = self.output["LayerNorm"](x + self.output["dense"](inner))
        return normalized


class Bert(nn.Module):
    """Tokens and which of them count [N, LENGTH] → embedding of each sentence [N, SIZE]; weights as transformers names them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See the class."""
        counts = attention_mask.to(torch.float32)
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, (counts[:, None, None] - 1) * 1e4)
        return (x * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)


def export(source: Path, target: Path) -> None:
    """Exports the weights in `source` (model.safetensors)."""
    module = Bert()
    weights = load_file(source)
    module.load_state_dict({name: weights[name] for name in module.state_dict()})
    tokens = torch.randint(0, WORDS, (2, LENGTH))
    export_torch(module, (tokens, torch.ones_like(tokens)), target)
