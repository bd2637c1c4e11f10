"""A round of FedAvg or SCAFFOLD in Apple's pfl, its simulated backend. Run in .venv-peers, from the root of the repository.

Measured with one process that has a thread for each core, and with one process for each core; the faster counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.algorithm.scaffold import SCAFFOLD, SCAFFOLDParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.peers import work
from benchmarks.plain import PlainFedAvg


class Task(nn.Module):
    """The model with what pfl asks of it beside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a local step descends."""
        return F.cross_entropy(self.model(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """pfl evaluates in its first round whatever it is told, which is a round that does not count."""
        return {"images": Weighted.from_unweighted(len(images))}


class Client(PyTorchTensorDataset):  # type: ignore[misc]
    """A client whose batches are drawn, cropped and flipped when they are asked for.

    It offers J batches and no more: pfl would fetch one beyond its last step, and drop it.
    """

    def __init__(self, loop: PlainFedAvg, client: int) -> None:
        super().__init__((loop.shards[client],), user_id=str(client))
        self.loop, self.client = loop, client

    def __len__(self) -> int:
        return self.loop.J * self.loop.batch_size

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        return work.batches(self.loop, self.client)


class Ends(TrainingProcessCallback):  # type: ignore[misc]
    """When each round ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
        self.times.append(time.perf_counter())
        return False, Metrics()


def seconds_per_round(J: int, batch_size: int, rounds: int, method: str) -> float:
    """Median seconds of a round of this process, or of it and those beside it."""
    torch.manual_seed(0)  # processes begin with one model, and then draw what they like
    loop = work.plain(J, batch_size)
    torch.seed()
    task = Task(loop.model)
    model = PyTorchModel(
        task,
        lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, weight_decay=1e-4),
        torch.optim.SGD(task.parameters(), lr=1.0),  # takes the average of the clients as it is
    )
    clients = FederatedDataset(lambda client: Client(loop, client), get_user_sampler("minimize_reuse", range(work.CLIENTS)))
    ends = Ends()
    common = {"central_num_iterations": rounds, "evaluation_frequency": rounds, "train_cohort_size": work.COHORT, "val_cohort_size": 0}
    if method == "scaffold":  # option II; it takes a number of passes, of J batches each here, and no number of steps
        algorithm = SCAFFOLD()
        parameters = SCAFFOLDParams(
            **common,
            population=work.CLIENTS,
            use_gradient_as_control_variate=False,
            user_state_storage=InMemoryUserStateStorage(),
        )
        length = {"local_num_epochs": 1, "local_num_steps": None}
    else:
        algorithm, parameters = FederatedAveraging(), NNAlgorithmParams(**common)
        length = {"local_num_epochs": None, "local_num_steps": J}
    algorithm.run(
        parameters,
        SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(**length, local_batch_size=batch_size, local_learning_rate=0.1),
        NNEvalHyperParams(local_batch_size=batch_size),
        [ends],
        send_metrics_to_platform=False,
    )
    return work.median_round(ends.times)


def measured(processes: int, threads: int) -> float:
    """Median seconds of a round in that many processes, started as this script is."""
    launcher = [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, "-m", *launcher, "benchmarks.peers.pfl", *sys.argv[1:], "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[2])
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure both settings and print the result."""
    parser = work.parser(__doc__)
    parser.add_argument("--method", choices=["fedavg", "scaffold"], default="fedavg")
    parser.add_argument("--threads", type=int, help="measure in this process alone, and print seconds")
    arguments = parser.parse_args()
    if arguments.threads is None:
        each = sorted({(1, work.CORES), (work.CORES, 1)})
        found = {f"{processes} processes, {threads} threads each": measured(processes, threads) for processes, threads in each}
        work.report("pfl", version("pfl"), found)
        return
    torch.set_num_threads(arguments.threads)
    seconds = seconds_per_round(arguments.J, arguments.batch_size, arguments.rounds, arguments.method)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(seconds), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # one that leaves before the other is done with it makes the other fail
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
