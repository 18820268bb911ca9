"""Torch-Pruning on a ResNet-20, run by the Python of an environment that has it.

python -m venv peer && peer/bin/pip install torch torch-pruning
python -m benchmarks.shrink --peer peer/bin/python

It imports nothing of this repository, and prints one JSON object.
"""

import json
import sys
import time

import torch
import torch_pruning as tp
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block of feature maps (batch, channels, height, width)."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet20() -> nn.Module:
    """The network of `networks.resnet20`."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    inputs = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers).eval()


def main(share: float) -> None:
    """Prune a share of the channels of every group by magnitude, once."""
    torch.manual_seed(0)
    network, image = resnet20(), torch.randn(1, 3, 32, 32)
    before = network(image).detach()
    operations, parameters = tp.utils.count_ops_and_params(network, image)
    started = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        network,
        image,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=share,
        ignored_layers=[network[-1]],
    )
    analysed = time.perf_counter()
    pruner.step()
    cut = time.perf_counter()
    operations_left, parameters_left = tp.utils.count_ops_and_params(network, image)
    after = network(image).detach()
    found = {
        "version": tp.__version__,
        "parameters": parameters,
        "parameters_left": parameters_left,
        "operations": operations,
        "operations_left": operations_left,
        "analysis_seconds": analysed - started,
        "cut_seconds": cut - analysed,
        "change": float((after - before).abs().max() / before.abs().max()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
