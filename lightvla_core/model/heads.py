"""From hidden states to normalised actions, and the small projectors that bring numbers into the sequence."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightvla_core.model.config import TokenConfig


class ScalarProjector(nn.Module):
    """A vector of numbers to one token: proprioception (batch, dim), or one noisy action each (batch, slots, 1)."""

    def __init__(self, input_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class ResidualLayer(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))"""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.ffn(x))


class ActionMLP(nn.Module):
    """The hidden states of one time step to its action (OpenVLA-OFT)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualLayer(hidden_dim) for _ in range(num_layers))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return cast(Tensor, self.fc2(self.layer_norm2(x)))


class L1Head(nn.Module):
    """Regression: what comes out is the normalised action."""

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.model = ActionMLP(action_dim * hidden_size, hidden_size, action_dim)
        self.action_dim = action_dim

    def forward(self, states: Tensor) -> Tensor:
        """states (batch, chunk * action_dim, hidden), time-major -> (batch, chunk, action_dim)"""
        return cast(Tensor, self.model(states.unflatten(1, (-1, self.action_dim)).flatten(-2)))


class NoisePredictor(nn.Module):
    """Wrapper that gives ActionMLP the name it has in published diffusion heads."""

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.mlp_resnet = ActionMLP(action_dim * hidden_size, hidden_size, action_dim)


class DiffusionHead(nn.Module):
    """The same regression, whose output is the noise in the noisy actions that entered the sequence."""

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.noise_predictor = NoisePredictor(hidden_size, action_dim)
        self.action_dim = action_dim

    def forward(self, states: Tensor) -> Tensor:
        """states (batch, chunk * action_dim, hidden), time-major -> (batch, chunk, action_dim)"""
        return cast(Tensor, self.noise_predictor.mlp_resnet(states.unflatten(1, (-1, self.action_dim)).flatten(-2)))


def encode_actions(actions: Tensor, tokens: TokenConfig) -> Tensor:
    """Normalised actions to token ids: clipped to [-1, 1], binned, counted back from the end of the vocabulary."""
    edges = torch.linspace(-1, 1, tokens.num_bins, dtype=torch.float64, device=actions.device)
    return tokens.action_end - torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)


def decode_actions(ids: Tensor, tokens: TokenConfig) -> Tensor:
    """Token ids to normalised actions, float64: the centre of each bin; ids outside the action range are clipped."""
    edges = torch.linspace(-1, 1, tokens.num_bins, dtype=torch.float64, device=ids.device)
    centers = (edges[:-1] + edges[1:]) / 2
    return centers[(tokens.action_end - ids - 1).clamp(0, tokens.num_bins - 2)]
