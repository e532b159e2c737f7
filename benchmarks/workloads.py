"""The networks and inputs that ``benchmarks/compare.py`` times: fixed seeds, untrained weights, eval mode.

Networks with BatchNorm get the running statistics of random images, so that folding it is no identity and
activations neither vanish nor grow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jacli.models.torchvision_import import import_torchvision

_SEED = 20
"""Of weights and inputs."""


@dataclass(frozen=True)
class Workload:
    """A network, the shape of one input, and how many samples are differentiated."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    batch: int
    quick_batch: int
    attention: bool = False

    def make(self, batch: int, device: torch.device) -> tuple[nn.Module, Tensor]:
        """The frozen network in eval mode, and normal inputs ``(batch, *input)``; both float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = self.build()
            _fill_statistics(model, self.input_shape)
            x = torch.randn(batch, *self.input_shape)
        return model.eval().requires_grad_(False).to(device), x.to(device)


@dataclass(frozen=True)
class Sizes:
    """What a contestant needs to know of the work before it runs.

    ``largest`` and ``total`` count the elements that one sample's forward pass writes: those of the
    largest tensor, and of all. ``flops`` are those of one forward pass of the whole batch.
    """

    batch: int
    n_in: int
    n_out: int
    largest: int
    total: int
    flops: int
    itemsize: int

    @property
    def passes(self) -> int:
        """Of the cheaper direction, over the whole batch."""
        return min(self.n_in, self.n_out)

    def count(self, unit: str) -> int:
        """How many ``samples``, ``outputs`` or ``inputs`` there are; 1 of anything else."""
        return {"samples": self.batch, "outputs": self.n_out, "inputs": self.n_in}.get(unit, 1)


def sizes_of(model: nn.Module, x: Tensor) -> Sizes:
    """Run the model once at ``x`` and count."""
    # Attention as products: the counter does not know the CPU's fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        y = model(x)
    with torch.no_grad(), _Elements() as elements:
        model(x)
    return Sizes(
        batch=len(x),
        n_in=math.prod(x.shape[1:]),
        n_out=math.prod(y.shape[1:]),
        largest=max(elements.written) // len(x),
        total=sum(elements.written) // len(x),
        flops=counter.get_total_flops(),
        itemsize=x.element_size(),
    )


class _Elements(TorchDispatchMode):
    """Notes the elements of every tensor that an operator returns anew: no views, nothing in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            parts = result if isinstance(result, (tuple, list)) else [result]
            self.written.extend(part.numel() for part in parts if isinstance(part, Tensor))
        return result


def _fill_statistics(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Running statistics of 16 random inputs, and scales and shifts that are not 1 and 0."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the last batch, not a mean with the initial ones
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
    with torch.no_grad():
        model.train()(torch.randn(16, *input_shape))


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.pad:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + x)


def _resnet20() -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = 16
    for width in (16, 32, 64):
        for position in range(3):
            blocks.append(_BasicBlock(inputs, width, 2 if position == 0 and width > 16 else 1))
            inputs = width
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(import_torchvision().models, name)()
        return model

    return build


def _vit_ti16() -> nn.Module:
    model: nn.Module = import_torchvision().models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    head = model.get_submodule("heads.head")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.02)  # torchvision starts it at zero, and the Jacobian with it
    return model


def _vit_b16() -> nn.Module:
    model: nn.Module = import_torchvision().models.vit_b_16()
    head = model.get_submodule("heads.head")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.02)
    return model


def _mlp(*widths: int, linear_at: tuple[int, ...] = ()) -> Callable[[], nn.Module]:
    """Linear layers with ReLUs between them; none behind the layers in ``linear_at``."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Linear(inputs, outputs))
            if i not in linear_at and i + 2 < len(widths):
                layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    return build


def _decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 128 * 8 * 8),
        nn.ReLU(),
        nn.Unflatten(1, (128, 8, 8)),
        nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 3, 3, padding=1),
        nn.Tanh(),
    )


_IMAGE = (3, 224, 224)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("lenet", _lenet, (1, 28, 28), batch=256, quick_batch=4),
        Workload("resnet20", _resnet20, (3, 32, 32), batch=32, quick_batch=3),
        Workload("resnet18", _torchvision("resnet18"), _IMAGE, batch=1, quick_batch=1),
        Workload("vit_ti16", _vit_ti16, _IMAGE, batch=1, quick_batch=1, attention=True),
        Workload("regnet", _torchvision("regnet_x_400mf"), _IMAGE, batch=1, quick_batch=1),
        Workload(
            "autoencoder",
            _mlp(784, 512, 256, 32, 256, 512, 784, linear_at=(2,)),
            (784,),
            batch=64,
            quick_batch=2,
        ),
        Workload("mlp", _mlp(3072, 512, 512, 100), (3072,), batch=256, quick_batch=2),
        Workload("decoder", _decoder, (16,), batch=32, quick_batch=2),
    )
}

LARGE_WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("convnext_t", _torchvision("convnext_tiny"), _IMAGE, batch=1, quick_batch=1),
        Workload("vit_b16", _vit_b16, _IMAGE, batch=1, quick_batch=1, attention=True),
        Workload("resnet50", _torchvision("resnet50"), _IMAGE, batch=1, quick_batch=1),
    )
}
"""Networks of which a CPU would need an hour."""
