"""The one loop.

Every method, centralized training included, is rounds of: choose participants, give each row its start, J local steps,
communicate, outer step. Nothing in a round is read back to the host.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.data.dataset import Dataset, channel_statistics, datasets
from fl_hydra.data.order import Order
from fl_hydra.sharding.base import equal_sizes
from fl_hydra.training.clients import ClientStore
from fl_hydra.training.draws import Draws
from fl_hydra.training.engines import ENGINES, PRECISIONS, choose_engine
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.fabric import Fabric, Traffic
from fl_hydra.training.images import Images
from fl_hydra.training.layout import Layout, initial_vector
from fl_hydra.training.memory import keep_freed_memory
from fl_hydra.training.rows import Clients, Rows
from fl_hydra.training.threads import single_threaded_pool

Metrics = dict[str, float | int | None]
"""One line of metrics.jsonl; None where a number is not finite or there is no such set."""


@dataclass(frozen=True)
class _Place:
    """Where a block of rows is trained: parameters [rows, P], slots that are fresh in each round, and hyper-parameters [rows, 1]."""

    parameters: Tensor
    slots: dict[str, Tensor]
    hyper: dict[str, Tensor]


class Trainer:
    """A run in memory.

    Args:
        experiment: what to train.
        engine: `loop`, `stacked` or `auto`.
        device: where.
        client_folder: where state that belongs to clients is written; None keeps it in memory.

    Raises:
        UserError: the model does not fit the images, or the shards cannot be made.
    """

    def __init__(self, experiment: Experiment, *, engine: str = "auto", device: str = "cpu", client_folder: Path | None = None) -> None:
        self.experiment = experiment
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = PRECISIONS[experiment.precision]
        self.round = 0
        self.samples = 0
        self.lr = 0.0

        module = self._build()
        self.layout = Layout.of(module)
        self.sample_flops = sample_flops(module, experiment)
        chosen = choose_engine(engine, self.device, self.layout, self.sample_flops * experiment.step_samples)
        self.engine = ENGINES[chosen](module, self.layout, experiment.precision, self.device)

        self.split = load_split(experiment.dataset, experiment.data, experiment.split_seed, experiment.precision, self.device)
        labels = self.split.train.labels.cpu().numpy()
        shards = experiment.sharding.shards(labels, experiment.K, experiment.N_c, experiment.seed)
        self.shard_sizes = shards.sizes
        self.order = Order(shards, experiment.seed)
        self.cursors = np.zeros(experiment.K, np.int64)

        algorithm, optimizer = experiment.algorithm, experiment.optimizer
        self.state = algorithm.initial(initial_vector(self._build, experiment.seed, self.dtype).to(self.device)[None])
        self.fabric = Fabric(runs=1, remote=algorithm.federated)
        kept = {**(optimizer.slots if algorithm.keeps_optimizer else {}), **algorithm.client_slots}
        widths = {name: self.layout.size if full else 1 for name, full in kept.items()}
        self._fresh = {name: self.layout.size if full else 1 for name, full in optimizer.slots.items() if name not in kept}
        self.clients = ClientStore(widths, self.dtype, self.device, client_folder)
        self._meter = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._metered = 0
        self._abandoned = False
        self._pool: ThreadPoolExecutor | None = None
        self._allocate(experiment.m)

    def _build(self) -> nn.Module:
        card = self.experiment.card
        return self.experiment.model.build(card.channels, card.height, card.width, card.classes)

    def _allocate(self, rows: int) -> None:
        """The buffers of a round's rows; they serve every round, and are never rebound within one."""
        blocks = self.engine.blocks(rows)
        size = blocks[0].stop - blocks[0].start
        threads = self.engine.threads(rows, self.experiment.batch_size)
        self._places = [self._place(size) for _ in range(threads)]
        self._rows = rows
        self._streams = len(blocks) > 1 and type(self.experiment.algorithm).update is Algorithm.update
        """Whether the mean is taken block by block, so that the rows' ends need no memory."""
        if len(blocks) == 1:
            self._ends = self._places[0].parameters
        else:
            self._ends = self._buffer(threads if self._streams else rows, self.layout.size)
        self._run = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.engine.bind([place.parameters for place in self._places])
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = single_threaded_pool(threads) if threads > 1 else None

    def _buffer(self, rows: int, width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=self.dtype, device=self.device)

    def _place(self, rows: int) -> _Place:
        optimizer = self.experiment.optimizer
        return _Place(
            self._buffer(rows, self.layout.size),
            {name: self._buffer(rows, width) for name, width in self._fresh.items()},
            {name: self._buffer(rows, 1).fill_(value) for name, value in optimizer.hyper.items()},
        )

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.samples >= self.experiment.budget

    def run_round(self) -> None:
        """One round: cohort, starts, local steps, update."""
        experiment, algorithm = self.experiment, self.experiment.algorithm
        ids = experiment.participation.cohort(self.shard_sizes, experiment.m, experiment.seed, self.round)
        rows = len(ids)
        if rows != self._rows:
            self._allocate(rows)

        # The last round is cut: what remains of the budget is spread over the rows.
        samples = equal_sizes(min(experiment.round_samples(self.samples, rows), experiment.budget - self.samples), rows)
        steps = -(-int(samples.max()) // experiment.step_samples)
        draws = Draws(
            self.split.train,
            self.order,
            ids,
            self.cursors[ids],
            samples,
            steps * algorithm.batches_per_step,
            experiment.batch_size,
            experiment.seed,
            self.dtype,
        )

        weights = samples * (self.shard_sizes[ids] if algorithm.federated else 1.0)
        clients = Clients(
            ids,
            self._run,
            torch.from_numpy(weights / weights.sum()).to(self.device, self.dtype),
            self.clients.check_out(ids, self.round),
            self.fabric,
        )
        starts = algorithm.start(self.state, clients)
        lr = self._learning_rates(rows, steps)
        self._train_rows(starts, clients, lr, draws)
        if self._streams:
            self.fabric.count_up(starts)
            algorithm.outer(self.state, self._ends if len(self._ends) == 1 else self._ends.sum(0, keepdim=True))
        else:
            algorithm.update(self.state, clients, starts, self._ends)

        self._meter += draws.meter.sum(0)
        self._metered += int(samples.sum())
        self.cursors[ids] += samples
        self.samples += int(samples.sum())
        self.round += 1

    def _learning_rates(self, rows: int, steps: int) -> Tensor:
        """The rate of every local step of the round: [rows, steps]."""
        experiment = self.experiment
        together = rows * experiment.step_samples
        factors = [experiment.scheduler.factor(self.samples + j * together, together, experiment.budget) for j in range(steps)]
        self.lr = experiment.optimizer.lr * factors[-1]
        return (torch.tensor(factors, dtype=self.dtype) * experiment.optimizer.lr).to(self.device).expand(rows, -1)

    def _train_rows(self, starts: Tensor, clients: Clients, lr: Tensor, draws: Draws) -> None:
        """All local steps of all rows, block by block. Each place takes its share of the blocks; several places, each in a thread.

        Which thread trains a row does not change its numbers.
        """
        blocks = self.engine.blocks(len(starts))

        def share(number: int) -> None:
            place = self._places[number]
            total = self._ends[number] if self._streams else None
            for block in blocks[number :: len(self._places)]:
                self._train_block(place, block, starts[block], clients, lr[block], draws)
                if total is not None:
                    self._add(total, place.parameters, clients.weights[block], first=block.start == blocks[number].start)
                elif self._ends is not place.parameters:
                    self._ends[block].copy_(place.parameters)

        if self._pool is None:
            share(0)
            return
        shares = [self._pool.submit(share, number) for number in range(len(self._places))]
        try:
            for done in shares:
                done.result()
        except BaseException:
            self._abandoned = True
            raise

    @staticmethod
    def _add(total: Tensor, rows: Tensor, weights: Tensor, first: bool) -> None:
        """Add weighted rows [rows, P] to total [P]; the first ones replace what it holds."""
        for row, weight in zip(rows, weights, strict=True):
            if first:
                torch.mul(row, weight, out=total)
                first = False
            else:
                total.addcmul_(row, weight)

    def _train_block(self, place: _Place, block: slice, starts: Tensor, clients: Clients, lr: Tensor, draws: Draws) -> None:
        """All local steps of some rows, in one place that stays in the cache."""
        algorithm = self.experiment.algorithm
        place.parameters.copy_(starts)
        if starts.stride(0) == 0:
            self.engine.share(place.parameters, starts[0])
        for slot in place.slots.values():
            slot.zero_()
        slots = {**place.slots, **{name: slot[block] for name, slot in clients.slots.items()}}
        rows = Rows(place.parameters, starts, slots, place.hyper, lr, self.experiment.optimizer)
        batches = draws.batches(block)
        for j in range(lr.shape[1]):
            step_batches = list(islice(batches, algorithm.batches_per_step))
            if self._abandoned:
                break
            active = np.array([batch.counts for batch in step_batches]).any(0) if draws.cut else None
            if active is None or active.all():
                algorithm.step(rows, self.engine.gradient, step_batches, j)
                continue
            if not active.any():
                break
            # Rows whose samples are used up in a cut round stay as they are while the others take their last step.
            idle = torch.from_numpy(~active).to(self.device)[:, None]
            before = [(tensor, tensor.clone()) for tensor in (rows.parameters, *rows.slots.values())]
            algorithm.step(rows, self.engine.gradient, step_batches, j)
            for tensor, kept in before:
                tensor.copy_(torch.where(idle, kept, tensor))

    def evaluate(self) -> Metrics:
        """The present line of metrics; the training figures are running means since the last call. The one place that reads back."""
        models = self.experiment.algorithm.models(self.state)
        loss, correct = self._meter.tolist()
        metrics: Metrics = {
            "round": self.round,
            "samples": self.samples,
            "epoch": self.samples / len(self.split.train),
            "lr": self.lr,
            "train/loss": _finite(loss / max(1, self._metered)),
            "train/acc": _finite(correct / max(1, self._metered)),
        }
        self._meter.zero_()
        self._metered = 0
        for name, images in (("val", self.split.validation), ("test", self.split.test)):
            mean_loss = mean_accuracy = None
            if len(images):
                loss, correct = (self.engine.evaluate(models, images).mean(0) / len(images)).tolist()
                mean_loss, mean_accuracy = _finite(loss), correct
            metrics |= {f"{name}/loss": mean_loss, f"{name}/acc": mean_accuracy}
        return {**metrics, **asdict(self.fabric.traffic), "flops": self.sample_flops * self.engine.samples}

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next round depends on, as plain values and tensors; client state is written and referred to."""
        return {
            "round": self.round,
            "samples": self.samples,
            "lr": self.lr,
            "cursors": torch.from_numpy(self.cursors),
            "state": {field.name: getattr(self.state, field.name) for field in fields(self.state)},
            "meter": self._meter,
            "metered": self._metered,
            "gradient_samples": self.engine.samples,
            "traffic": asdict(self.fabric.traffic),
            "clients": self.clients.save(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            CorruptFile: client state that it refers to is damaged.
        """
        self.clients.restore(checkpoint["clients"])
        self.round, self.samples, self.lr = checkpoint["round"], checkpoint["samples"], checkpoint["lr"]
        self.cursors = checkpoint["cursors"].numpy().copy()
        for name, tensor in checkpoint["state"].items():
            getattr(self.state, name).copy_(tensor)
        self._meter.copy_(checkpoint["meter"])
        self._metered = checkpoint["metered"]
        self.engine.samples = checkpoint["gradient_samples"]
        self.fabric.traffic = Traffic(**checkpoint["traffic"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Split:
    """The three sets of a run, on the device."""

    train: Images
    validation: Images
    test: Images


def load_split(dataset: Dataset, root: Path, split_seed: int, precision: str, device: torch.device) -> Split:
    """Training, validation and test images on the device, normalised by the training images; kept for the next run."""
    settings = tuple(asdict(dataset).items())
    return _load_split(dataset.name, settings, root, split_seed, torch.bfloat16 if precision == "bf16" else PRECISIONS[precision], device)


@lru_cache(maxsize=2)
def _load_split(
    name: str, settings: tuple[tuple[str, Any], ...], root: Path, split_seed: int, dtype: torch.dtype, device: torch.device
) -> Split:
    dataset = datasets[name](**dict(settings))
    arrays = dataset.load(root)
    train, validation = dataset.split(arrays.train_labels, split_seed)
    mean, standard_deviation = channel_statistics(arrays.train_images[train])

    def images(
        pixels: np.ndarray[Any, np.dtype[np.uint8]], labels: np.ndarray[Any, np.dtype[np.int64]], crop: int = 0, flip: bool = False
    ) -> Images:
        return Images(pixels, labels, mean, standard_deviation, crop=crop, flip=flip, dtype=dtype, device=device)

    return Split(
        images(arrays.train_images[train], arrays.train_labels[train], dataset.crop, dataset.flip),
        images(arrays.train_images[validation], arrays.train_labels[validation]),
        images(arrays.test_images, arrays.test_labels),
    )


def sample_flops(module: nn.Module, experiment: Experiment) -> int:
    """Floating-point operations, two for each multiply-add, of one sample's forward and backward pass, of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    card = experiment.card
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, card.channels, card.height, card.width)).sum().backward()
    return int(counter.get_total_flops())
