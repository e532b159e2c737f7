"""Train the sample models on real handwritten digits and write them beside this script.

Example: ``make sample-models``, or ``python sample_models/train.py`` where the test group is installed.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn bundles (``load_digits``), scaled to
[0, 1].  A stratified, seeded quarter is held out: no model sees it in training, its accuracy is what
is printed, and the sample inputs come from it.  Everything is seeded; another release of torch or
another processor may still change the last digits of the weights.
"""

from __future__ import annotations

import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from digits_cnn import make_model
from jacli.models.torchvision_import import import_torchvision

HERE = Path(__file__).resolve().parent
SEED = 0
REQUIRED_ACCURACY = 0.95
N_SAMPLES = 64
N_SAMPLES_RGB = 16


def main() -> int:
    """Train, write and check both networks; the exit code is 1 if one is not accurate enough."""
    torch.use_deterministic_algorithms(True)
    train_images, held_out_images, train_labels, held_out_labels = split_digits()

    torch.manual_seed(SEED)
    cnn = make_model()
    train(cnn, train_images, train_labels, epochs=15, learning_rate=1e-2)
    save_torchscript(cnn, HERE / "digits_cnn.pt")
    torch.save(cnn.state_dict(), HERE / "digits_cnn_state.pt")
    np.save(HERE / "digits.npy", held_out_images[:N_SAMPLES].numpy())
    np.save(HERE / "digits_labels.npy", held_out_labels[:N_SAMPLES].numpy())

    torch.manual_seed(SEED)
    shufflenet = import_torchvision().models.shufflenet_v2_x0_5(weights=None, num_classes=10)
    train(shufflenet, to_rgb(train_images), train_labels, epochs=30, learning_rate=1e-2)
    save_file(shufflenet.state_dict(), HERE / "digits_shufflenet.safetensors")
    np.save(HERE / "digits_rgb.npy", to_rgb(held_out_images[:N_SAMPLES_RGB]).numpy())
    np.save(HERE / "digits_rgb_labels.npy", held_out_labels[:N_SAMPLES_RGB].numpy())

    accuracies = {
        "digits_cnn": accuracy(cnn, held_out_images, held_out_labels),
        "digits_shufflenet": accuracy(shufflenet, to_rgb(held_out_images), held_out_labels),
    }
    for name, value in accuracies.items():
        print(f"{name:<18} held-out accuracy {value:.2%} of {len(held_out_labels)} images")
    if min(accuracies.values()) <= REQUIRED_ACCURACY:
        print(f"a model is not above {REQUIRED_ACCURACY:.0%}: do not commit these files", file=sys.stderr)
        return 1
    return 0


def split_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits, a quarter of each class held out.

    Returns:
        Training and held-out images, each ``(n, 1, 8, 8)`` float32 in [0, 1], then training and held-out
        labels, each ``(n,)`` int64.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train_rows, held_out_rows = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=digits.target, random_state=SEED
    )
    return images[train_rows], images[held_out_rows], labels[train_rows], labels[held_out_rows]


def to_rgb(images: Tensor) -> Tensor:
    """``(n, 1, 8, 8) -> (n, 3, 32, 32)``: four times larger (bilinear), the grey value in each channel."""
    larger = nn.functional.interpolate(images, scale_factor=4, mode="bilinear", align_corners=False)
    return larger.repeat(1, 3, 1, 1)


def train(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, learning_rate: float) -> None:
    """Fit in place with AdamW, one cycle of learning rates; ends in evaluation mode."""
    batch_size = 64
    steps = epochs * (len(labels) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        # The incomplete last batch is left out: the schedule counts whole batches, and batch
        # normalisation fails on a last batch of one sample.
        for rows in torch.randperm(len(labels)).split(batch_size)[: len(labels) // batch_size]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The part of ``images`` whose largest logit is the label."""
    right: Tensor = network(images).argmax(dim=1) == labels
    return right.double().mean().item()


def save_torchscript(network: nn.Module, path: Path) -> None:
    """Write ``network`` as a scripted TorchScript archive, without the source paths of this machine."""
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export since torch 2.11, but what many people have on disk.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        torch.jit.script(network).save(path)
    drop_source_paths(path)


def drop_source_paths(path: Path) -> None:
    """Leave the ``.debug_pkl`` members out of an archive: they only say where each line was written."""
    with zipfile.ZipFile(path) as archive:
        kept = [(i, archive.read(i)) for i in archive.infolist() if not i.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in kept:
            archive.writestr(member, content)


if __name__ == "__main__":
    sys.exit(main())
