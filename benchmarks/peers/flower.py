"""A FedAvg round in Flower's simulation engine, Ray behind it. Run in .venv-peers, from the root of the repository.

Measured with one actor for each core, and with one actor that has all cores; the faster counts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so; actors would give way to whatever else runs

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers import flower_client, work
from benchmarks.plain import lenet

PULL_INTERVAL = 0.01
"""Seconds between the server's looks for answers. Flower's 0.1 by default would add to a short round."""


def seconds_per_round(J: int, batch_size: int, rounds: int, threads: int) -> float:
    """Median seconds of a round where each actor has that many cores and threads, and there are as many actors as fit."""
    ends: list[float] = []
    answered: list[int] = []

    def note(_round: int, _arrays: Any) -> None:
        """Flower calls this before the first round and after each; nothing is evaluated."""
        ends.append(time.perf_counter())

    def count(answers: list[Any], _weight: str) -> Any:
        """Flower goes on when a client fails; a figure must not."""
        answered.append(len(answers))
        return MetricRecord({})

    server = ServerApp()

    def main(grid: Any, context: Any) -> None:
        grid.pull_interval = PULL_INTERVAL
        strategy = FedAvg(
            fraction_train=work.COHORT / work.CLIENTS,
            fraction_evaluate=0.0,
            min_train_nodes=work.COHORT,
            min_available_nodes=work.CLIENTS,  # clients register while the server starts
            train_metrics_aggr_fn=count,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(lenet(100).state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({"J": J, "batch-size": batch_size, "threads": threads}),
            evaluate_fn=note,
        )

    server.main()(main)
    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=work.CLIENTS,
        backend_config={"init_args": {"num_cpus": work.CORES}, "client_resources": {"num_cpus": threads, "num_gpus": 0.0}},
    )
    if answered != rounds * [work.COHORT]:
        raise RuntimeError(f"answers of each round: {answered}, of {work.COHORT} clients asked")
    return work.median_round(ends[1:])  # without the call before the first round


def main() -> None:
    """Measure both settings and print the result."""
    arguments = work.parser(__doc__).parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        for threads in sorted({1, work.CORES}):
            name = f"num_cpus={threads}: {work.CORES // threads} actors, {threads} threads each"
            found[name] = seconds_per_round(arguments.J, arguments.batch_size, arguments.rounds, threads)
    work.report("flower", version("flwr"), found)


if __name__ == "__main__":
    main()
