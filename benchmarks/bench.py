"""`make bench`: speed and memory. Contenders of a section take turns, and figures are medians.

Absolute times are this machine's; the ratios are what is required, and compared from commit to commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.workloads import (
    DEVICE,
    MadeUpText,
    ManyClients,
    ReluBeforePool,
    Size,
    bare_passes,
    composed,
    configuration,
    plain_characters,
    plain_loop,
    shrink,
    trainer,
    with_state,
)
from fl_hydra.algorithms.centralized import Centralized
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.algorithms.scaffold import Scaffold
from fl_hydra.errors import UserError
from fl_hydra.models.lstm import CharacterLSTM
from fl_hydra.models.small import Small
from fl_hydra.paths import CONF
from fl_hydra.resolving import resolve
from fl_hydra.seams.rows import CALLS, METER_WIDTH, Batch
from fl_hydra.training.engine_selection import ENGINES
from fl_hydra.training.trainer import Trainer

PROJECT = Path(__file__).resolve().parent.parent
BENCH = (sys.executable, "-m", "benchmarks.bench")
PEERS = PROJECT / ".venv-peers" / "bin" / "python"
Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Scale:
    """How much is measured: in full, or only that everything runs."""

    repeats: int = 9
    overheads: int = 90
    batch_size: int = 64
    clients: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)
    cohorts: tuple[int, ...] = (1, 2, 5, 10, 50, 200)
    packs: tuple[int, ...] = (1, 3, 9, 15)
    steps: int = 16
    inner: int = 50
    """Local steps of a round of pFedHN."""
    units: int = 100
    """Hidden units of its hypernetwork."""
    evaluated: int = 10_000
    compared: tuple[str, ...] = ("fp32", "bf16", "fp16")
    """Precisions in which engines are compared; fp16 on a GPU alone."""


SHORT = Scale(
    repeats=1,
    overheads=1,
    batch_size=2,
    clients=(10, 100),
    cohorts=(1, 2),
    packs=(1, 2),
    steps=2,
    inner=2,
    units=4,
    evaluated=100,
    compared=("fp32",),
)


@dataclass
class Figures:
    """What a section found. rows: lines of its table, of the columns `what`, `ms`, `images/s` and `note`. ratios: what is compared."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, seconds: float, images: int | None = None, note: str = "") -> None:
        """A line of the table."""
        rate = None if images is None else images / seconds
        self.rows.append({"what": what, "ms": 1000 * seconds, "images/s": rate, "note": note})


REQUIRED: dict[str, tuple[str, float]] = {
    "FedAvg round, fp32: plain loop / ours": ("at least", 1.2),
    "FedAvg round, bf16: plain loop / ours": ("at least", 2.5),
    "Shakespeare round, fp32: plain loop / ours": ("at least", 1.0),
    "overhead round: ours / ten bare passes": ("at most", 1.4),
    "convolutions and products, fp32": ("at least", 0.75),
    "a round, fedsam / fedavg": ("at most", 2.1),
    "a round, scaffold / fedavg": ("at most", 1.1),
    "a round, feddyn / fedavg": ("at most", 1.1),
    "a round, fedprox / fedavg": ("at most", 1.1),
    "a round, moon / fedavg": ("at most", 2.2),
    "a round of one client, J=50, pfedhn / fedavg": ("at most", 1.15),
    "5,000 rounds of pfedhn on the digits, minutes": ("at most", 15.0),
    "Flower / ours": ("at least", 1.0),
    "Flower / ours, overhead round": ("at least", 1.0),
    "pfl / ours": ("at least", 1.0),
    "pfl / ours, SCAFFOLD": ("at least", 1.0),
    "pfl / ours, overhead round": ("at least", 1.0),
    "start to first round, seconds": ("at most", 4.0),
    "each further point, seconds": ("at most", 0.5),
    "packed 3: together / one after the other": ("at most", 1.05),
    "packed 9: together / one after the other": ("at most", 1.05),
    "packed 15: together / one after the other": ("at most", 1.05),
} | {f"{what}, K={K:,} to K=100": ("within", 1.2) for what in ("time of a round", "peak memory") for K in (10, 1_000, 10_000, 100_000)}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


CONTENDERS: dict[str, Callable[..., Callable[[], None]]] = {
    "plain loop": lambda J, batch_size: plain_loop(J, batch_size).run_round,
    "plain characters": lambda J, batch_size: plain_characters(J, batch_size).run_round,
    "steps": lambda J, batch_size: trainer(engine="loop", m=1, J=J, batch_size=batch_size).run_round,
}
"""What can be measured in a process of its own: by local steps and batch size, what does a round."""


class Elsewhere:
    """A contender in a process of its own, idle between its turns.

    A trainer sets how its process keeps freed memory, which is worth a fifth of a round of text; a user's script has no such setting.

    Args:
        contender: one of :data:`CONTENDERS`, and its arguments.
        threads: of the process; None: as many as it takes by itself.
    """

    def __init__(self, contender: str, J: int, batch_size: int, *, threads: int | None = None) -> None:
        self._process = subprocess.Popen(
            [*BENCH, *(["--short"] if Size.part < 1 else []), "--contender", contender, str(J), str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        )

    def start(self) -> None:
        """Let it begin a round."""
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until it has ended one."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("a contender in a process of its own has failed; its error is above")

    def __call__(self) -> None:
        self.start()
        self.wait()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    @staticmethod
    def serve(contender: str, J: int, batch_size: int) -> None:
        """Be that process: a round for each line that is read."""
        run_round = CONTENDERS[contender](J, batch_size)
        for _ in sys.stdin:
            run_round()
            synchronize()
            print("done", flush=True)


def interleaved(contenders: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """Median seconds of each contender; they take turns, so that a drift of the machine meets all of them."""
    for _ in range(3 if DEVICE == "cuda" else int(Size.part == 1)):  # graphs are recorded in the second round
        for contender in contenders.values():
            contender()
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            synchronize()
            began = time.perf_counter()
            contender()
            synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def engines() -> list[str]:
    """The engines that run here."""
    return [name for name in ENGINES if DEVICE == "cuda" or not name.startswith("graph")]


def rounds(scale: Scale) -> Figures:
    """The FedAvg round: K=100, C=0.1, J=4, batch 64, for each engine and precision."""
    figures = Figures("FedAvg round, K=100, C=0.1, J=4, batch 64")
    images = 40 * scale.batch_size
    ours = {
        f"ours, {precision}": trainer(batch_size=scale.batch_size, precision=precision).run_round for precision in ("fp32", "tf32", "bf16")
    }
    with Elsewhere("plain loop", 4, scale.batch_size) as plain:
        seconds = interleaved({"plain loop": plain, **ours}, scale.repeats)
    for name, value in seconds.items():
        figures.add(name, value, images)
    for precision in ("fp32", "bf16"):
        figures.ratios[f"FedAvg round, {precision}: plain loop / ours"] = seconds["plain loop"] / seconds[f"ours, {precision}"]
    for precision in [each for each in scale.compared if DEVICE == "cuda" or each != "fp16"]:
        each = {name: trainer(engine=name, batch_size=scale.batch_size, precision=precision).run_round for name in engines()}
        for name, value in interleaved(each, max(1, scale.repeats // 3)).items():
            figures.add(f"engine={name}, {precision}", value, images)
    return figures


def characters(scale: Scale) -> Figures:
    """The round on text: ten clients, J=4, batch 64, windows of 80 characters, two LSTM layers of 256."""
    figures = Figures("Shakespeare round: ten clients, J=4, batch 64, the LSTM")
    ours = {
        f"ours, {precision}": trainer(MadeUpText(), model=CharacterLSTM(), batch_size=scale.batch_size, precision=precision).run_round
        for precision in ("fp32", "bf16")
    }
    with Elsewhere("plain characters", 4, scale.batch_size) as plain:
        seconds = interleaved({"plain loop": plain, **ours}, max(1, scale.repeats // 2))
    for name, value in seconds.items():
        figures.add(name, value, 40 * scale.batch_size)
    for precision in ("fp32", "bf16"):
        figures.ratios[f"Shakespeare round, {precision}: plain loop / ours"] = seconds["plain loop"] / seconds[f"ours, {precision}"]
    each = {
        f"engine={name}": trainer(MadeUpText(), model=CharacterLSTM(), engine=name, batch_size=scale.batch_size).run_round
        for name in engines()
        if "im2col" not in name
    }
    for name, value in interleaved(each, max(1, scale.repeats // 3)).items():
        figures.add(name, value, 40 * scale.batch_size)
    return figures


def overhead(scale: Scale) -> Figures:
    """What a round costs beside arithmetic: J=1, batch 1, ten clients."""
    figures = Figures("overhead round: J=1, batch 1, ten clients")
    each = {f"engine={name}": trainer(engine=name, J=1, batch_size=1).run_round for name in engines()}
    contenders = {
        "ten bare passes": bare_passes(10),
        "plain loop": plain_loop(1, 1).run_round,
        "ours": trainer(J=1, batch_size=1).run_round,
    }
    seconds = interleaved(contenders | each, scale.overheads)
    for name, value in seconds.items():
        figures.add(name, value, 10)
    figures.ratios["overhead round: ours / ten bare passes"] = seconds["ours"] / seconds["ten bare passes"]
    return figures


def profile(scale: Scale) -> Figures:
    """Where a training step's time goes: self-time of convolutions and matrix products, of centralized steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    figures = Figures("a training step, centralized, batch 64: self-times")
    activity = ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU
    for precision in ("fp32", "bf16"):
        run = trainer(algorithm=Centralized(), K=1, m=1, J=scale.steps, batch_size=scale.batch_size, precision=precision)
        wall = interleaved({"round": run.run_round}, scale.repeats)["round"]
        with record(activities=[activity]) as recorded:
            run.run_round()
            synchronize()
        times = {
            event.key: float(event.self_cpu_time_total if DEVICE == "cpu" else event.self_device_time_total) / 1e6
            for event in recorded.key_averages()
        }
        products = sum(seconds for name, seconds in times.items() if any(word in name for word in PRODUCTS))
        figures.add(f"{precision}: whole step", wall / scale.steps, scale.batch_size)
        for name, seconds in sorted(times.items(), key=lambda item: -item[1])[:8]:
            figures.add(f"{precision}: {name[:60]}", seconds / scale.steps, note=f"{100 * seconds / wall:.1f} %")
        figures.ratios[f"convolutions and products, {precision}"] = products / wall
    return figures


PRODUCTS = ("convolution", "addmm", "::mm", "bmm", "gemm", "cudnn", "cutlass", "wgrad", "dgrad", "xmma")
"""What names of convolutions and matrix products contain, on a CPU and on a GPU."""


def levers(scale: Scale) -> Figures:
    """What each measure is worth: gradients of ten rows of LeNet, stacked and one by one, fp32."""
    rows, size = 10, scale.batch_size
    figures = Figures(f"levers: gradients of ten rows, batch {size}, fp32")
    stacked, products, loop, other = (trainer(engine=name, batch_size=size) for name in ("stacked", "im2col", "loop", "loop"))
    images = torch.randn(rows, size, 32, 32, 3, device=DEVICE).permute(0, 1, 4, 2, 3)
    labels = torch.randint(0, 100, (rows, size), device=DEVICE)

    def gradients(run: Trainer, inputs: torch.Tensor = images, shared: bool = False) -> Callable[[], object]:
        parameters = run.state.model.expand(rows, -1).clone()
        places = [parameters[row : row + 1] for row in range(rows)] if run in (loop, other) else [parameters]
        run.group.engine.bind(places)

        def once() -> None:
            if shared:
                run.group.engine.mark_equal(parameters)
            for first in range(0, rows, len(places[0])):
                part = slice(first, first + len(places[0]))
                counts, calls = np.zeros(len(places[0]), np.int64), np.zeros((len(places[0]), len(CALLS)), np.int64)
                meter = torch.zeros(len(places[0]), METER_WIDTH, device=DEVICE)
                run.group.engine.gradient(places[first // len(places[0])], Batch(inputs[part], labels[part], None, meter, counts, calls))

        return once

    late = trainer(engine="stacked", batch_size=size, model=ReluBeforePool())
    contenders = {
        "stacked (vmap): grouped convolutions, channels_last, pooling before ReLU": gradients(stacked),
        "the same, while the rows are equal (first step of a round)": gradients(stacked, shared=True),
        "the same, images in the default memory format": gradients(stacked, images.contiguous()),
        "the same, ReLU before pooling": gradients(late),
        "im2col and matrix products": gradients(products),
        "im2col, while the rows are equal": gradients(products, shared=True),
        "one row after the other (loop), all threads on each": gradients(loop),
        "loop, images in the default memory format": gradients(other, images.contiguous()),
    }
    for name, seconds in interleaved(contenders, max(1, scale.repeats // 3)).items():
        figures.add(name, seconds, rows * size)

    flat, slope = torch.randn(2, rows, stacked.group.layout.size, device=DEVICE)
    pieces = [list(torch.split(matrix, stacked.group.layout.sizes, dim=1)) for matrix in (flat, slope)]

    def update(parameters: list[torch.Tensor], gradient: list[torch.Tensor]) -> None:
        for weight, g in zip(parameters, gradient, strict=True):
            weight.mul_(1 - 1e-5).add_(g, alpha=-0.1)

    updates = {"update of one flat [rows, P] buffer": lambda: update([flat], [slope]), "update tensor by tensor": lambda: update(*pieces)}
    for name, seconds in interleaved(updates, 5 * scale.repeats).items():
        figures.add(name, seconds)
    if DEVICE == "cpu":
        threads = trainer(engine="loop", batch_size=max(16, size))  # below 16 the loop uses no threads of its own
        for name, seconds in interleaved({"FedAvg round, a thread on each core": threads.run_round}, max(1, scale.repeats // 3)).items():
            figures.add(name, seconds, 40 * size)
        figures.add("the same rows, a process on each core", _in_processes(size, max(1, scale.repeats // 3)), 40 * size)
    return figures


def _in_processes(batch_size: int, repeats: int) -> float:
    """Median seconds of the local steps of ten rows divided over a process for each core; what they send is not counted."""
    cores = torch.get_num_threads()
    with ExitStack() as stack:
        workers = [stack.enter_context(Elsewhere("steps", -(-40 // cores), max(16, batch_size), threads=1)) for _ in range(cores)]

        def all_at_once() -> None:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.wait()

        return interleaved({"processes": all_at_once}, repeats)["processes"]


def throughput(scale: Scale) -> Figures:
    """Images a second of centralized training and of LocalSGD with K=8, J=16."""
    figures = Figures("images/s, batch 64")
    size = scale.batch_size
    runs: dict[str, tuple[Callable[[], object], int]] = {}
    for precision in ("fp32", "bf16"):
        central = trainer(algorithm=Centralized(), K=1, m=1, J=scale.steps, batch_size=size, precision=precision)
        local = trainer(algorithm=LocalSGD(), K=8, m=8, J=scale.steps, batch_size=size, precision=precision)
        runs[f"centralized, {precision}"] = (central.run_round, scale.steps * size)
        runs[f"LocalSGD K=8 J=16, {precision}"] = (local.run_round, 8 * scale.steps * size)
    seconds = interleaved({name: run for name, (run, _) in runs.items()}, max(1, scale.repeats // 3))
    for name, value in seconds.items():
        figures.add(name, value, runs[name][1])
    return figures


def packed(scale: Scale) -> Figures:
    """Runs that differ in their seeds, trained together, against as many rounds of one alone."""
    figures = Figures("FedAvg rounds of several runs, together (packed) and one after the other")
    size = scale.batch_size
    alone = trainer(batch_size=size).run_round
    for runs in scale.packs:
        several = trainer(runs=runs, batch_size=size).run_round

        def one_by_one(runs: int = runs) -> None:
            for _ in range(runs):
                alone()

        seconds = interleaved({"together": several, "one by one": one_by_one}, max(1, scale.repeats // 3))
        figures.add(f"{runs} together", seconds["together"], runs * 40 * size)
        figures.add(f"{runs} one after the other", seconds["one by one"], runs * 40 * size)
        figures.ratios[f"packed {runs}: together / one after the other"] = seconds["together"] / seconds["one by one"]
    return figures


def evaluation(scale: Scale) -> Figures:
    """Loss and accuracy of one model on test images, and of 100 clients' models, each on its share of them."""
    figures = Figures(f"evaluation of {scale.evaluated:,} images")
    for precision in ("fp32", "bf16"):
        seconds = interleaved({"evaluation": partial(_evaluate, trainer(precision=precision), scale.evaluated)}, scale.repeats)
        figures.add(precision, seconds["evaluation"], scale.evaluated)
    digits = configuration("algorithm=fedavg", "K=100", "evaluation.personal=dealt", "rounds=1")
    for what, run in (
        ("personal, LeNet", trainer(personal="dealt")),
        ("personal, digits", Trainer(resolve(digits), device=DEVICE)),
    ):
        count = len(run.split.test)
        seconds = interleaved({"global": partial(_evaluate, run, count), "personal": partial(_judge, run)}, scale.repeats)
        ratio = seconds["personal"] / seconds["global"]
        figures.add(f"{what}, K=100", seconds["personal"], count, f"{ratio:.2f} of the global model's evaluation, in turn with it")
        figures.ratios[f"{what}, K=100: personal / global"] = ratio
    return figures


def _judge(run: Trainer) -> None:
    """Judge every client on its share of the test set."""
    run.personal_scores(0, {"test": torch.arange(len(run.split.test), device=DEVICE)})


def _evaluate(run: Trainer, images: int) -> list[float]:
    totals: list[float] = run.group.engine.evaluate(run.state.model, run.split.test, torch.arange(images, device=DEVICE))[0].tolist()
    return totals


def many_clients(K: int) -> Trainer:
    """K clients with small images, of which ten take part in a round."""
    return trainer(ManyClients(), K=K)


def clients(scale: Scale) -> Figures:
    """Time and memory against the number of clients, ten of them in a round."""
    figures = Figures("ten clients a round out of K, J=4, batch 64, small images")
    seconds = interleaved({K: many_clients(K).run_round for K in scale.clients}, scale.repeats)
    peaks = {K: _peak_with_clients(K) for K in scale.clients}
    for K in scale.clients:
        figures.add(f"K={K:,}", seconds[K], 2560, f"peak {peaks[K]:.0f} MB")
        if K != 100:
            figures.ratios[f"time of a round, K={K:,} to K=100"] = seconds[K] / seconds[100]
            figures.ratios[f"peak memory, K={K:,} to K=100"] = peaks[K] / peaks[100]
    return figures


def methods(scale: Scale) -> Figures:
    """A round of each federated method and uplink, and of FedAvg in turn with it: K=100, C=0.1, J=4, batch 64, fp32."""
    figures = Figures(
        "a round of each method, K=100, C=0.1, J=4, batch 64; beside it: gradients and time relative to FedAvg in turn with it"
    )
    size = f"batch_size={scale.batch_size}"
    choices = {name: [f"algorithm={name}"] for name in _options("algorithm") if name != "fedavg"}
    choices |= {f"uplink={name}": ["algorithm=fedavg", f"uplink={name}"] for name in _options("uplink") if name != "none"}
    for name, words in choices.items():
        if not configuration(*words).algorithm.federated:
            continue
        try:
            own, model = _trainer_of(words, size)
        except UserError as refusal:
            figures.rows.append({"what": name, "ms": 0.0, "images/s": None, "note": f"not measured: {refusal}"})
            continue
        beside = Trainer(composed("algorithm=fedavg", "J=4", size, f"model={model}"), device=DEVICE)
        exact = f"a round, {name} / fedavg" in REQUIRED
        seconds = interleaved({"fedavg": beside.run_round, "own": own.run_round}, scale.repeats if exact else max(1, scale.repeats // 3))
        ratio = seconds["own"] / seconds["fedavg"]
        work = own.sole_run.computed / own.sole_run.round / (beside.sole_run.computed / beside.sole_run.round)
        figures.add(name, seconds["own"], note=f"{work:.2f}, {ratio:.2f}" + (f", model={model}" if model != "lenet" else ""))
        figures.ratios[f"a round, {name} / fedavg"] = ratio
    return figures


def _options(group: str) -> list[str]:
    """What can be chosen of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _trainer_of(words: list[str], size: str) -> tuple[Trainer, str]:
    """The first that can be trained, and its model: LeNet or one that has norm layers, J=4 or the method's own number of steps."""
    refusals = []
    for model in [name for name in ("lenet", "lenet_bn") if name in _options("model")]:
        for steps in (["J=4"], []):
            try:
                return Trainer(composed(*words, *steps, size, f"model={model}"), device=DEVICE), model
            except UserError as refusal:
                refusals.append(refusal)
    raise refusals[0]


def hypernetwork(scale: Scale) -> Figures:
    """pFedHN's round, of one client and 50 local steps, with the digits' model and with LeNet, beside FedAvg's of one client."""
    figures = Figures(f"a round of one client, J={scale.inner}, batch {scale.batch_size}; beside it: 5,000 of them, as in the paper")
    size = ("C=0.01", f"J={scale.inner}", f"batch_size={scale.batch_size}", "optimizer=sgdm")
    own = ("algorithm=pfedhn", f"algorithm.hidden_units={scale.units}")
    digits = resolve(configuration(*own, *size, "K=10", "dataset=digits", "model=small"))
    contenders = {
        "pFedHN, digits": Trainer(dataclasses.replace(digits, budget=10**12), device=DEVICE),
        "pFedHN, LeNet": Trainer(composed(*own, *size, "model=lenet"), device=DEVICE),
        "FedAvg, LeNet": Trainer(composed("algorithm=fedavg", *size, "model=lenet"), device=DEVICE),
    }
    seconds = interleaved({name: run.run_round for name, run in contenders.items()}, max(1, scale.repeats // 3))
    for name, value in seconds.items():
        figures.add(name, value, scale.inner * scale.batch_size, f"{5000 * value / 60:.0f} min")
    figures.ratios["a round of one client, J=50, pfedhn / fedavg"] = seconds["pFedHN, LeNet"] / seconds["FedAvg, LeNet"]
    figures.ratios["5,000 rounds of pfedhn on the digits, minutes"] = 5000 * seconds["pFedHN, digits"] / 60
    return figures


def client_state(scale: Scale) -> Figures:
    """SCAFFOLD with K=100,000 clients that all have state, in each place where it can be held, each in a process of its own."""
    K, m = scale.clients[-1], 10
    figures = Figures(f"SCAFFOLD, {m} clients a round out of K={K:,}, a model of {_numbers():,} numbers, J=4, batch 16")
    (PROJECT / "outputs").mkdir(exist_ok=True)
    for place in ("device", "cpu", "disk"):
        with tempfile.TemporaryDirectory(dir=PROJECT / "outputs") as folder:
            command = [*BENCH, *(["--short"] if Size.part < 1 else []), "--client-state", place, folder, str(K), str(m), str(scale.repeats)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
        found = json.loads(done.stdout.splitlines()[-1])
        note = f"FedAvg's beside it {1000 * found['fedavg']:.0f} ms; peak {found['peak']:.0f} MB"
        figures.add(f"state_on={place}", found["round"], 64 * m, note)
        figures.add(f"state_on={place}: the first checkpoint", found["first"], note=f"{found['disk']:.0f} MB in {found['files']} files")
        figures.add(f"state_on={place}: the next checkpoint, after {found['rounds']} rounds", found["next"])
        figures.add(f"state_on={place}: restoring it", found["restoring"])
        figures.ratios[f"client state, {place}: a round / fedavg"] = found["round"] / found["fedavg"]
    return figures


def _numbers() -> int:
    return int(with_state("cpu", None, 1, 1).group.layout.size)


def _measure_client_state(place: str, folder: Path, K: int, m: int, repeats: int) -> None:
    """Print what one place costs: seconds and megabytes, as JSON."""
    run = with_state(place, folder, K, m)
    fedavg = trainer(ManyClients(), model=Small(), K=K, m=m, batch_size=16)
    seconds = interleaved({"fedavg": fedavg.run_round, "round": run.run_round}, 3 * repeats)
    store = run.sole_run.clients

    def timed(action: Callable[[], Any]) -> tuple[float, Any]:
        synchronize()
        began = time.perf_counter()
        value = action()
        return time.perf_counter() - began, value

    first, _ = timed(run.checkpoint)
    rounds = 3 * repeats
    for _ in range(rounds):
        run.run_round()
    following, checkpoint = timed(run.checkpoint)
    collecting, _ = timed(lambda: store.collect([checkpoint["clients"]]))
    peak = peak_mb()
    restoring, _ = timed(lambda: run.restore(checkpoint))
    files = list(folder.iterdir())
    found = {"first": first, "rounds": rounds, "next": following + collecting, "restoring": restoring, "peak": peak}
    print(json.dumps({**seconds, **found, "files": len(files), "disk": sum(path.stat().st_size for path in files) / 2**20}))


def cohorts(scale: Scale) -> Figures:
    """Time against the clients of a round."""
    figures = Figures("clients of a round out of K=1,000, J=4, batch 64, small images")
    runs = {m: trainer(ManyClients(), K=1_000, m=m).run_round for m in scale.cohorts}
    for m, seconds in interleaved(runs, max(1, scale.repeats // 3)).items():
        figures.add(f"m={m}", seconds, 256 * m, f"{1000 * seconds / m:.1f} ms a client")
    return figures


def start(scale: Scale) -> Figures:
    """From the command to the first round on prepared images, and from one point of a sweep to the next."""
    figures = Figures("start-up, files of the size of CIFAR-100")
    from benchmarks.workloads import made_up

    arrays = made_up(50_000, 32, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "cifar100.npz",
            train_images=arrays.train_images,
            train_labels=arrays.train_labels.astype(np.uint8),
            test_images=arrays.test_images,
            test_labels=arrays.test_labels.astype(np.uint8),
        )
        firsts, others = [], []
        for repeat in range(min(3, scale.repeats) + 1):  # the first writes the description beside the data
            command = [sys.executable, "-m", "benchmarks.startup", f"data={folder}", f"outputs={folder / str(repeat)}"]
            began = time.time()
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
            stamps = json.loads(done.stdout.splitlines()[-1])
            firsts.append(stamps["rounds"][0] - began)
            others.append(statistics.median(stamps["between"]))
    figures.add("command to first round", statistics.median(firsts[1:]))
    figures.add("end of one point to the first round of the next", statistics.median(others[1:]))
    figures.ratios["start to first round, seconds"] = statistics.median(firsts[1:])
    figures.ratios["each further point, seconds"] = statistics.median(others[1:])
    return figures


def peers(scale: Scale) -> Figures:
    """The same rounds in Flower and pfl, where `make peers` has installed them; Flower has no SCAFFOLD of its own."""
    figures = Figures("other simulators, the same work on a CPU")
    if not PEERS.exists() or DEVICE != "cpu":
        figures.title += ": not installed here (make peers), or not on a CPU"
        return figures
    fedavg = {"flower": "Flower", "pfl": "pfl"}
    for label, J, size, method, names in (
        ("", 4, scale.batch_size, FedAvg(), fedavg),
        (", overhead round", 1, 1, FedAvg(), fedavg),
        (", SCAFFOLD", 4, scale.batch_size, Scaffold(), {"pfl": "pfl"}),
    ):
        mine = trainer(J=J, batch_size=size, algorithm=method).run_round
        for peer, name in names.items():
            command = [
                str(PEERS),
                "-m",
                f"benchmarks.peers.{peer}",
                "--J",
                str(J),
                "--batch-size",
                str(size),
                "--rounds",
                str(scale.repeats + 3),
                *(["--method", "scaffold"] if method.name == "scaffold" else []),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
            found = json.loads(done.stdout.splitlines()[-1])
            ours = interleaved({"ours": mine}, scale.repeats)["ours"]
            figures.add(f"{name} {found['version']}{label}", found["seconds_per_round"], 10 * J * size, found["setting"])
            figures.add(f"ours beside it{label}", ours, 10 * J * size)
            figures.ratios[f"{name} / ours{label}"] = found["seconds_per_round"] / ours
    return figures


SECTIONS: dict[str, Callable[[Scale], Figures]] = {
    section.__name__: section
    for section in (
        rounds,
        characters,
        peers,
        overhead,
        levers,
        profile,
        throughput,
        packed,
        evaluation,
        methods,
        hypernetwork,
        clients,
        client_state,
        cohorts,
        start,
    )
}


def _peak_with_clients(K: int) -> float:
    """Peak memory in MB of five rounds with K clients, in a process of its own."""
    command = [*BENCH, *(["--short"] if Size.part < 1 else []), "--peak-with-clients", str(K)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    return float(done.stdout)


def peak_mb() -> float:
    """The most memory this process has held on the device, in MB; what its parent held does not count."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def holds(name: str, ratio: float) -> str:
    """Whether a ratio is what is required of it."""
    if name not in REQUIRED:
        return ""
    relation, bound = REQUIRED[name]
    fine = {"at least": ratio >= bound, "at most": ratio <= bound, "within": 1 / bound <= ratio <= bound}[relation]
    return f"{relation} {bound:g}: {'yes' if fine else 'NO'}"


def machine() -> dict[str, Any]:
    """What was measured on, and what was measured."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=PROJECT, check=False)
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def show(figures: Figures, verdicts: bool) -> None:
    """A section's table and ratios, and, where sizes are real, whether they are what is required."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=140)
    console.print(f"\n{figures.title}")
    table = Table("what", "ms", "images/s", "")
    for row in figures.rows:
        rate = "" if row["images/s"] is None else f"{row['images/s']:.0f}"
        table.add_row(Text(row["what"]), f"{row['ms']:.1f}", rate, row["note"])
    console.print(table)
    for name, ratio in figures.ratios.items():
        console.print(f"  {name}: {ratio:.2f}  {holds(name, ratio) if verdicts else ''}", highlight=False)


def main() -> None:
    """Measure, print tables, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-with-clients", type=int, metavar="K", help=argparse.SUPPRESS)
    parser.add_argument("--client-state", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="measure these sections")
    parser.add_argument("--short", action="store_true", help="tiny sizes: shows that everything runs, and says nothing of speed")
    parser.add_argument("--repeats", type=int, default=Scale.repeats)
    parser.add_argument("--json", type=Path, default=PROJECT / "outputs" / "bench.json")
    arguments = parser.parse_args()
    if arguments.short:
        shrink()
    if arguments.peak_with_clients is not None:
        run = many_clients(arguments.peak_with_clients)
        for _ in range(5):
            run.run_round()
        print(peak_mb())
        return
    if arguments.client_state is not None:
        place, folder, *numbers = arguments.client_state
        _measure_client_state(place, Path(folder), *map(int, numbers))
        return
    if arguments.contender is not None:
        contender, J, batch_size = arguments.contender
        Elsewhere.serve(contender, int(J), int(batch_size))
        return
    scale = SHORT if arguments.short else Scale(repeats=arguments.repeats, overheads=10 * arguments.repeats)
    found: dict[str, Any] = {"machine": machine(), "short": arguments.short, "sections": {}}
    print("{processor}, {cores} cores, GPU: {gpu}, torch {torch}, commit {commit}".format(**found["machine"]))
    for name in arguments.only:
        figures = SECTIONS[name](scale)
        show(figures, verdicts=not arguments.short)
        found["sections"][name] = {"title": figures.title, "rows": figures.rows, "ratios": figures.ratios}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
