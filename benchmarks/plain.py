"""What a user's script does, without its clumsiness: the yardstick of the benchmark.

In-memory tensors, default memory format, fp32, crop and flip drawn for each image and applied to the batch at once, one
reused model, `torch.optim.SGD`, averaging with running sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainFedAvg:
    """A FedAvg loop over the clients of a round, on images.

    Args:
        inputs: normalised training images, float [N, channels, height, width].
        labels: int64 [N].
        shards: samples of each client.
        device: where the samples and the model are.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, shards: list[Tensor], *, cohort: int, J: int, batch_size: int, device: str = "cpu"
    ) -> None:
        self.device = device
        self.inputs = self.prepared(inputs).to(device)
        self.labels, self.shards = labels.to(device), [shard.to(device) for shard in shards]
        self.cohort, self.J, self.batch_size = cohort, J, batch_size
        self.model = self.network().to(device)
        self.server = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, weight_decay=1e-4)

    def prepared(self, inputs: Tensor) -> Tensor:
        """What is kept of the training samples."""
        return F.pad(inputs, (4, 4, 4, 4))

    def network(self) -> nn.Module:
        """The model."""
        return lenet(100)

    def augmented(self, indices: Tensor) -> Tensor:
        """Random crop and flip of each image."""
        count = len(indices)
        device = self.device
        forth, back = torch.arange(32, device=device), torch.arange(31, -1, -1, device=device)
        rows = torch.randint(0, 9, (count, 1), device=device) + forth
        columns = torch.randint(0, 9, (count, 1), device=device) + torch.where(torch.rand(count, 1, device=device) < 0.5, forth, back)
        channels = torch.arange(3, device=device)[:, None, None]
        return self.inputs[indices[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]

    def run_round(self) -> None:
        """One round."""
        cohort = torch.randperm(len(self.shards))[: self.cohort].tolist()
        total = sum(len(self.shards[client]) for client in cohort)
        sums = [torch.zeros_like(parameter) for parameter in self.server]
        for client in cohort:
            shard = self.shards[client]
            with torch.no_grad():
                for parameter, value in zip(self.model.parameters(), self.server, strict=True):
                    parameter.copy_(value)
            order = shard[torch.randperm(len(shard), device=self.device)]
            for j in range(self.J):
                indices = order[j * self.batch_size : (j + 1) * self.batch_size]
                loss = F.cross_entropy(self.model(self.augmented(indices)), self.labels[indices])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            with torch.no_grad():
                for sum_, parameter in zip(sums, self.model.parameters(), strict=True):
                    sum_.add_(parameter, alpha=len(shard) / total)
        self.server = sums


class PlainCharacters(PlainFedAvg):
    """The same loop on windows of text, uint8 [N, 80], with `torch.nn.LSTM`."""

    def prepared(self, inputs: Tensor) -> Tensor:
        return inputs

    def network(self) -> nn.Module:
        return Characters(80)

    def augmented(self, indices: Tensor) -> Tensor:
        return self.inputs[indices].long()


class Characters(nn.Module):
    """The character LSTM as it is usually written."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.lstm = nn.LSTM(8, 256, 2, batch_first=True)
        self.classifier = nn.Linear(256, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the character after the last: [n, T] -> [n, vocabulary]."""
        logits: Tensor = self.classifier(self.lstm(self.embedding(characters))[0][:, -1])
        return logits


def lenet(classes: int) -> nn.Module:
    """The network as it is usually written, ReLU before pooling."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1600, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, classes)),
    )
