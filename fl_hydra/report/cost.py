"""What a run's communication costs: bytes on the wire, and wall-clock time on named networks, computed from its ledger.

A message of n bytes takes latency + n / bandwidth seconds, and a link carries one message in each direction at a time (the
alpha-beta model of Hockney, Parallel Computing 20(3), 1994). Summing and averaging what was received is free, and so is encoding.
These times do not affect what a run did: a slow network makes a run last longer, but does not change who takes part, nor the order
of events in asynchronous methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError, require

TABLE = Path(__file__).resolve().parents[2] / "conf" / "cost.yaml"
"""The table that comes with the project."""


@dataclass(frozen=True)
class Transfer:
    """One communication.

    in_a_row: consecutive messages, each waiting for the previous one. carried: their bytes. wire: bytes of all messages.
    """

    in_a_row: int
    carried: float
    wire: float


def ring(workers: int, payload: float) -> Transfer:
    """All-reduce of `payload` bytes over a ring: reduce-scatter and all-gather, each of K - 1 steps in which everyone sends payload / K.

    2 (K - 1) (latency + n / (K bandwidth)), which is optimal in consecutive bytes (Patarasuk and Yuan, J. Parallel Distrib.
    Comput. 69(2), 2009; the all-gather is that of Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19(1), 2005).
    On the wire 2 (K - 1) n.
    """
    steps = 2 * (workers - 1)
    return Transfer(steps, steps * payload / workers, steps * payload)


def tree(workers: int, payload: float) -> Transfer:
    """All-reduce by a binomial tree: a reduction to one worker and a broadcast from it, ceil(log2 K) messages of `payload` bytes each.

    2 ceil(log2 K) (latency + n / bandwidth) (Thakur, Rabenseifner and Gropp 2005): fewer consecutive messages than over a ring, but more
    bytes. On the wire 2 (K - 1) n, as over a ring.
    """
    steps = 2 * (workers - 1).bit_length()
    return Transfer(steps, steps * payload, 2 * (workers - 1) * payload)


def point_to_point(workers: int, payload: float) -> Transfer:
    """Everyone sends `payload` bytes to a separate server and gets as many back: the server's link carries K messages, and then K more.

    2 latency + 2 K n / bandwidth; on the wire 2 K n, as for the clients of federated methods. A lone worker needs no server.
    """
    if workers == 1:
        return Transfer(0, 0, 0)
    return Transfer(2, 2 * workers * payload, 2 * workers * payload)


COLLECTIVES: Mapping[str, tuple[Callable[[int, float], Transfer], ...]] = {
    "ring": (ring,),
    "tree": (tree,),
    "point_to_point": (point_to_point,),
    "fastest": (ring, tree),
}
"""Values of `collective`; with several algorithms, each average takes the one that is fastest on its network."""


@dataclass(frozen=True)
class Network:
    """Equal links without contention.

    latency: seconds of an empty message. bandwidth: bits per second in each direction. blocks: the network for averages within blocks;
    None: this one.
    """

    name: str
    latency: float
    bandwidth: float
    blocks: Network | None = None

    def __post_init__(self) -> None:
        require(0 <= self.latency < math.inf, f"networks.{self.name}: latency={self.latency}: a number of seconds, at least 0, is needed")
        require(
            0 < self.bandwidth < math.inf,
            f"networks.{self.name}: bandwidth={self.bandwidth}: a number of bits a second, greater than 0, is needed",
        )

    def seconds(self, in_a_row: float, carried: float) -> float:
        """Seconds of `in_a_row` consecutive messages with `carried` bytes in total."""
        return in_a_row * self.latency + 8 * carried / self.bandwidth


@dataclass(frozen=True)
class Device:
    """The device of a worker of speed 1: a step takes its samples / `samples_per_second`, or its operations / `flops_per_second`.

    Both None: the run's simulated time.
    """

    name: str
    samples_per_second: float | None = None
    flops_per_second: float | None = None

    def __post_init__(self) -> None:
        given = {key: rate for key, rate in vars(self).items() if key != "name" and rate is not None}
        require(len(given) <= 1, f"devices.{self.name}: samples_per_second and flops_per_second: two speeds; give one of them")
        for key, rate in given.items():
            require(0 < rate < math.inf, f"devices.{self.name}: {key}={rate}: must be greater than 0")


@dataclass(frozen=True)
class CostTable:
    """The contents of `conf/cost.yaml`: networks, devices and the collective for which costs are computed.

    delta: at which epsilon of private runs is stated; None: K^-1.1.
    """

    networks: Sequence[Network]
    devices: Sequence[Device]
    collective: str
    delta: float | None = None


@dataclass(frozen=True)
class Ledger:
    """What a run had computed and sent when it wrote a row of its metrics.

    workers: by which bytes are divided: all K, or those that share the steps of centralized training. blocks: number of blocks.
    rounds, samples, flops, messages: of all workers. payload: bytes that workers and server have sent. served, averages, block_averages,
    exchanges, exchanged: see :class:`fl_hydra.seams.fabric.Traffic`. seconds: simulated. delay: of these, simulated server
    delay. throughput: samples per second at speed 1 with which `seconds` were simulated. hub: whether one worker takes part in all
    exchanges. asked: samples of selection-time loss queries.
    """

    workers: int
    blocks: int
    rounds: int
    samples: int
    flops: int
    messages: int
    payload: int
    served: int
    averages: int
    block_averages: int
    exchanges: int
    exchanged: int
    seconds: float
    delay: float
    throughput: float
    hub: bool
    asked: int = 0

    @property
    def message(self) -> float:
        """Mean bytes of a message."""
        return self.payload / self.messages if self.messages else 0.0

    @property
    def visits(self) -> int:
        """How often workers visited the server while others continued."""
        return 0 if self.averages else self.served // 2

    @property
    def meetings(self) -> float:
        """Consecutive messages of the busiest worker in exchanges that overlap computation (an equal share, if there is no hub)."""
        if self.exchanges or not self.exchanged:
            return 0.0
        pairs = self.exchanged / self.message / 2
        return pairs if self.hub else 2 * pairs / self.workers


def read_ledger(row: Mapping[str, Any], config: Mapping[str, Any]) -> Ledger | None:
    """The ledger in a row of metrics; None if the run is older than some of these counts.

    Simulated seconds include the server's `algorithm.delay` for each visit, and a worker makes visits / K of them (exactly, if all are
    equally fast).
    """
    algorithm = config["algorithm"]
    try:
        return Ledger(
            workers=max(config["K"], config["data_parallel"]),
            blocks=algorithm.get("blocks", 1),
            rounds=row["round"],
            samples=row["samples"],
            flops=row["flops"],
            messages=row["messages"],
            payload=row["bytes_up"] + row["bytes_down"],
            served=row["served"],
            averages=row["averages"],
            block_averages=row["block_averages"],
            exchanges=row["exchanges"],
            exchanged=row["exchanged"],
            seconds=row["seconds"],
            asked=row.get("asked", 0),
            delay=algorithm.get("delay", 0.0) * row["served"] / 2 / config["K"],
            throughput=config["speeds"]["throughput"],
            hub=algorithm.get("topology") == "star",
        )
    except KeyError:
        return None


def computing_seconds(ledger: Ledger, device: Device) -> float:
    """Seconds of computation alone: the simulated ones, rescaled to the speed of the device.

    `flops_per_second` is divided by the operations per sample in this run, in which repeated gradients count repeatedly; a sample of a
    loss query counts as a third of one, as it does in the simulated seconds.
    """
    simulated = ledger.seconds - ledger.delay
    rate = device.samples_per_second
    if device.flops_per_second is not None:
        rate = device.flops_per_second * (ledger.samples + ledger.asked / 3) / ledger.flops
    return simulated if rate is None else simulated * ledger.throughput / rate


def average_seconds(workers: int, payload: float, network: Network, collective: str) -> float:
    """Seconds for workers to average `payload` bytes each, so that all have the result."""
    transfers = [method(workers, payload) for method in COLLECTIVES[collective]]
    return min(network.seconds(transfer.in_a_row, transfer.carried) for transfer in transfers)


def waiting_seconds(ledger: Ledger, network: Network, collective: str) -> float:
    """Seconds of all communication that everybody waits for: averages, and exchanges of neighbours after a step.

    Every average waits for the last worker, without computing meanwhile. Averages of federated methods are two passes, down and
    up, in which the server's link, as fast as any other, carries one model after another. Blocks average in parallel. Of the messages
    between neighbours, those of the busiest worker count, one after another.
    """
    if ledger.visits:
        return 0.0
    n = ledger.message
    seconds = network.seconds(ledger.exchanges, ledger.exchanges * n)
    if ledger.served:
        return seconds + network.seconds(2 * ledger.averages, ledger.served * n)
    everyone = (ledger.averages - ledger.block_averages) * average_seconds(ledger.workers, n, network, collective)
    size = ledger.workers // ledger.blocks
    return seconds + everyone + ledger.block_averages * average_seconds(size, n, network.blocks or network, collective)


def wall_clock(ledger: Ledger, network: Network, device: Device, collective: str) -> float:
    """Seconds from the beginning of training, computing and communication together.

    If workers wait for each other, it is the sum of both. Communication that others do not wait for overlaps computation:

    - A worker that goes to a parameter server waits for its own two messages, on average visits / K times, while others compute. But all
      visits go through the server's link, one after the other. So it takes the longer of computing + 2 (visits / K) (latency +
      n / bandwidth) and of visits n / bandwidth, the two lower bounds of a closed queue (Denning and Buzen, ACM Computing Surveys 10(3),
      1978): if both are close, queueing at the server makes it longer. The network replaces a run's simulated
      `delay`.
    - Workers that meet in pairs send from a second thread while they take gradients (Lian et al., ICML 2018; Nabli et al., NeurIPS 2023):
      the longer of computing and of a worker's consecutive meetings.
    """
    computing = computing_seconds(ledger, device)
    n = ledger.message
    if ledger.visits:
        own = ledger.visits / ledger.workers
        return max(computing + network.seconds(2 * own, 2 * own * n), network.seconds(0, ledger.visits * n))
    if ledger.meetings:
        return max(computing, network.seconds(ledger.meetings, ledger.meetings * n))
    return computing + waiting_seconds(ledger, network, collective)


def wire_bytes(ledger: Ledger, collective: str) -> float:
    """Bytes of all messages of all workers: by the collective for averages, as sent for everything else."""
    n = ledger.message
    sent = ledger.exchanged + ledger.served * n
    if ledger.served:
        return sent
    method = COLLECTIVES[collective][0]  # ring and tree, between which `fastest` chooses, put the same bytes on the wire
    everyone = (ledger.averages - ledger.block_averages) * method(ledger.workers, n).wire
    return sent + everyone + ledger.block_averages * ledger.blocks * method(ledger.workers // ledger.blocks, n).wire


def read_table(path: Path = TABLE) -> CostTable:
    """The table of networks, devices and the collective.

    Raises:
        UserError: something in it is wrong; the message says what is allowed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not a YAML table ({' '.join(str(error).split())})") from error
    try:
        return _table(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


KEYS = ("collective", "networks", "devices")
"""The table's keys that are required; `delta` is another one."""


def _table(content: Any) -> CostTable:
    _check_keys("", content, (*KEYS, "delta"))
    missing = [key for key in KEYS if key not in content]
    require(not missing, f"{', '.join(missing)}: missing; needed are {', '.join(KEYS)}")
    collective = content["collective"]
    require(collective in COLLECTIVES, f"collective={collective}: choose {', '.join(COLLECTIVES)}")
    networks = _networks(content["networks"])
    devices = []
    for name, given in _entries("devices", content["devices"]):
        _check_keys(f"devices.{name}: ", given, ("samples_per_second", "flops_per_second"))
        devices.append(Device(name, **{key: _number(f"devices.{name}: {key}", value) for key, value in given.items()}))
    delta = content.get("delta")
    if delta is not None:
        delta = _number("delta", delta)
        require(0 < delta < 1, f"delta={delta:g}: must be above 0 and below 1; null: K^-1.1 of each run")
    return CostTable(list(networks.values()), devices, collective, delta)


def _networks(content: Any) -> dict[str, Network]:
    plain, within = {}, {}
    for name, given in _entries("networks", content):
        _check_keys(f"networks.{name}: ", given, ("latency", "bandwidth", "blocks"))
        for key in ("latency", "bandwidth"):
            require(key in given, f"networks.{name}: {key}: missing; latency in seconds and bandwidth in bits a second are needed")
        latency, bandwidth = (_number(f"networks.{name}: {key}", given[key]) for key in ("latency", "bandwidth"))
        plain[name] = Network(name, latency, bandwidth)
        if "blocks" in given:
            within[name] = given["blocks"]
    for name, other in within.items():
        require(other in plain, f"networks.{name}: blocks={other}: no such network; choose from {', '.join(plain)}")
    return {
        name: Network(name, network.latency, network.bandwidth, plain[within[name]] if name in within else None)
        for name, network in plain.items()
    }


def _entries(group: str, content: Any) -> list[tuple[str, Any]]:
    require(isinstance(content, dict) and bool(content), f"{group}: at least one line `name: {{...}}` is needed")
    return [(str(name), given) for name, given in content.items()]


def _check_keys(where: str, content: Any, allowed: Sequence[str]) -> None:
    require(isinstance(content, dict), f"{where}{content}: a table with {', '.join(allowed)} is needed")
    for key in content:
        require(key in allowed, f"{where}{key}: no such key; choose from {', '.join(allowed)}")


def _number(where: str, value: Any) -> float:
    require(isinstance(value, int | float) and not isinstance(value, bool), f"{where}={value}: a number is needed")
    return float(value)
