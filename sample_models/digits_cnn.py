"""The small convolutional network behind ``digits_cnn.pt`` and ``digits_cnn_state.pt``.

Example: ``jacli compute sample_models/digits_cnn_state.pt sample_models/digits.npy --arch
sample_models/digits_cnn.py:make_model``.
"""

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers: ``(batch, 1, 8, 8) -> (batch, n_classes)`` logits."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)`` of images ``x`` of shape ``(batch, 1, 8, 8)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def make_model(n_classes: int = 10) -> DigitsCNN:
    """The network, untrained."""
    return DigitsCNN(n_classes)
