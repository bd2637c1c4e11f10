"""`make gpu-tables`: the tables of the assignment on all of CIFAR-100, three seeds together, each finished figure kept at once.

A figure that is in the JSON is not trained again, so the same command goes on where an interrupted one was. `--table` turns the
JSON into the Markdown tables of `docs/`, each figure beside what public reports of the same assignment have.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from benchmarks.bench import machine, synchronize
from benchmarks.workloads import DEVICE
from fl_hydra.config import Config
from fl_hydra.data.shakespeare import TextDataset
from fl_hydra.errors import UserError
from fl_hydra.files import write_atomically
from fl_hydra.resolving import resolve
from fl_hydra.schema import register_schema, typed
from fl_hydra.training.engine_selection import ENGINES
from fl_hydra.training.evaluation import Metrics
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer

PROJECT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
PRECISION = "bf16"
MARKS = (0.2, 0.4, 0.6, *(mark / 50 for mark in range(40, 50)))
"""Parts of the budget after which a run is evaluated: some for a curve, and the last of a run's fifty points, so that the training
loss is a mean over the last 2 % of the samples, as in a run's metrics."""


@dataclass(frozen=True)
class Figure:
    """One row of a table.

    section: the table. overrides: what is composed, a section of the report and what it leaves open. reported: test accuracy in %
    that others have, by whom, in what is nearest to this setting; empty where nobody has one.
    """

    section: str
    setting: str
    overrides: tuple[str, ...]
    reported: str = ""

    @property
    def name(self) -> str:
        return f"{self.section}: {self.setting}"


@dataclass(frozen=True)
class Section:
    """A table: its title, what its settings have in common, where the reported figures come from and how they differ from ours."""

    title: str
    common: str
    differs: str
    rate: float
    """Samples a second of three runs together on an H100, as far as it is known before anything is measured."""


DADONE, BIODDO, GADDI, AML = "Dadone et al.", "Bioddo and Mu", "Gaddi", "AML Project 5"
SOURCES = {
    DADONE: "Dadone, Fumero and Mirenda, stefffffffffano/AML_FederatedLearning",
    BIODDO: "TheS1n233/Distributed-Learning-Project5",
    GADDI: "GiovanniGaddi/Project5_DistributedLearning",
    AML: "lucavgn/AML_Project5",
}
"""Public reports of the same assignment, with the same network and crops and flips, one seed each as far as they say."""

SECTIONS = {
    "fedavg": Section(
        "FedAvg, J=4",
        "K=100, C=0.1, batch 64, 2000 rounds, no schedule, no momentum, the rates and weight decays that the report chose",
        f"{DADONE} keep the weights of the best validation accuracy; here the final ones are tested.",
        400_000,
    ),
    "centralized": Section(
        "Centralized",
        "150 epochs, batch 64, cosine, SGDM lr 0.01 and weight decay 1e-3, AdamW lr 1e-3 and weight decay 0.01",
        f"{BIODDO}: AdamW with weight decay 0.1, the rest as here. {DADONE}: SGDM as here, 200 epochs. {GADDI}: AdamW as here.",
        350_000,
    ),
    "localsgd": Section(
        "LocalSGD",
        "SGDM lr 0.01, weight decay 1e-3, momentum kept by each worker, batch 64 for each worker, as many samples as 150 epochs, cosine",
        f"{AML}: weight decay 4e-4, and up to 31 % more samples, the more the larger K J is. {BIODDO}: 52.86 for K=2, J=32, their best, "
        "with the rate and weight decay used here.",
        385_000,
    ),
    "slowmo": Section(
        "SlowMo",
        "as LocalSGD, alpha 1",
        f"{BIODDO}: the best of their K=2, 4, 8 and J=4 to 64, rate as here.",
        385_000,
    ),
    "large_batch": Section(
        "Large batches",
        "150 epochs, the rates of `conf/optimizer` by the square root of the batch size, warm-up linear in it, cosine",
        f"{GADDI}: LARS lr 15 and 12.8, LAMB lr 0.005 and 0.032 (at 8192 100 epochs), 15 and 5 epochs of warm-up, the best of several "
        f"rates by test accuracy. {AML}: weight decay 4e-4, SGDM lr 0.001, LARS lr 0.25, LAMB lr 5e-4, momentum inside LARS's ratio. "
        "Our rates were tuned at none of these sizes.",
        500_000,
    ),
    "heterogeneity": Section(
        "FedAvg, N_c and J",
        "K=100, C=0.1, batch 64, as many samples as 2000 rounds of J=4, the rates and weight decays that the report chose",
        f"{DADONE} keep the weights of the best validation accuracy; here the final ones are tested.",
        400_000,
    ),
    "shakespeare": Section(
        "Shakespeare",
        "LEAF's LSTM, roles as clients (natural) or their windows dealt out (iid), C=0.1, J=100, batch 64, lr 1, 200 rounds",
        "Published for this assignment: 47 to 51, iid within a point of natural. The text here is the first twenty works of the etext.",
        150_000,
    ),
}


def figures() -> list[Figure]:
    """Every figure, the most wanted first."""
    shardings = ("iid", "N_c=1", "N_c=5", "N_c=10", "N_c=50")
    found = [_fedavg("fedavg", sharding, J=4) for sharding in shardings]
    for gamma, decay, accuracy in (("5", "1e-4", "45.95"), ("1", "1e-3", "41.77"), ("0.5", "1e-4", "38.42"), ("0.05", "1e-3", "26.47")):
        skewed = ("+sweep/track_b=participation", "participation=skewed", f"gamma={gamma}", f"optimizer.weight_decay={decay}")
        found.append(Figure("fedavg", f"iid, gamma={gamma}, lr 0.1, wd {decay}", skewed, f"{accuracy} ({DADONE})"))
    cosine = ("+sweep/track_a=centralized", "scheduler=cosine")
    found.append(Figure("centralized", "SGDM", (*cosine, "optimizer=sgdm"), f"55.24 ({BIODDO}), 55.65 ({DADONE})"))
    found.append(Figure("centralized", "AdamW", (*cosine, "optimizer=adamw"), f"52.67 ({BIODDO}), 49.56 ({GADDI})"))
    local = {(2, 4): "51.93", (2, 64): "52.53", (4, 4): "51.10", (4, 64): "51.48", (8, 4): "50.55", (8, 64): "51.47"}
    for K in (2, 4, 8):
        for J in (4, 16, 64):
            reported = f"{local[K, J]} ({AML})" if (K, J) in local else ""
            found.append(Figure("localsgd", f"K={K}, J={J}", ("+sweep/track_a=localsgd", f"K={K}", f"J={J}"), reported))
    slow = ("+sweep/track_a=slowmo", "K=2", "J=32", "server.momentum=0.6")
    found.append(Figure("slowmo", "K=2, J=32, beta 0.6", slow, f"53.82 ({BIODDO})"))
    large = {
        (1024, "sgdm"): f"34.53 ({AML})",
        (1024, "lars"): f"46.47 ({GADDI}), 41.85 ({AML})",
        (1024, "lamb"): f"44.07 ({GADDI}), 45.09 ({AML})",
        (8192, "lars"): f"40 ({GADDI}), 30.88 ({AML})",
        (8192, "lamb"): f"45.02 ({GADDI}), 40.64 ({AML})",
    }
    for size in (1024, 8192):
        for optimizer in ("sgdm", "lars", "lamb"):
            scaled = ("+sweep/track_a=large_batch", f"optimizer={optimizer}", "scheduler=large_batch_cosine", f"batch_size={size}")
            found.append(Figure("large_batch", f"batch {size}, {optimizer.upper()}", scaled, large.get((size, optimizer), "")))
    found += [_fedavg("heterogeneity", sharding, J) for sharding in shardings for J in (8, 16)]
    for sharding in ("natural", "iid"):
        text = ("+sweep/track_b=shakespeare", f"sharding={sharding}", "J=100", "samples=null", "rounds=200")
        found.append(Figure("shakespeare", sharding, text, "47 to 51"))
    return found


def _fedavg(section: str, sharding: str, J: int) -> Figure:
    """Label skew, with the rate and weight decay that the report chose for it, and its test accuracy."""
    chosen = {
        ("iid", 4): ("0.1", "1e-4", 45.96),
        ("iid", 8): ("0.1", "1e-4", 43.81),
        ("iid", 16): ("0.05", "1e-3", 39.42),
        ("N_c=1", 4): ("0.005", "1e-4", 7.31),
        ("N_c=1", 8): ("0.005", "1e-3", 3.23),
        ("N_c=1", 16): ("0.01", "1e-3", 2.76),
        ("N_c=5", 4): ("0.05", "1e-3", 32.16),
        ("N_c=5", 8): ("0.05", "1e-3", 25.47),
        ("N_c=5", 16): ("0.05", "1e-3", 22.02),
        ("N_c=10", 4): ("0.05", "1e-3", 37.29),
        ("N_c=10", 8): ("0.05", "1e-4", 31.94),
        ("N_c=10", 16): ("0.05", "1e-4", 27.66),
        ("N_c=50", 4): ("0.1", "1e-4", 44.84),
        ("N_c=50", 8): ("0.1", "1e-4", 38.76),
        ("N_c=50", 16): ("0.05", "1e-4", 32.94),
    }
    lr, decay, reported = chosen[sharding, J]
    how = ("sharding=iid",) if sharding == "iid" else ("sharding=classes", sharding)
    overrides = ("+sweep/track_b=heterogeneity", *how, f"J={J}", f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}")
    setting = f"{sharding}, " + (f"J={J}, " if section == "heterogeneity" else "") + f"lr {lr}, wd {decay}"
    return Figure(section, setting, overrides, f"{reported} ({DADONE})")


def experiments(figure: Figure, data: Path, tiny: bool = False, seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """A figure's runs, one for each seed; tiny: the same with small batches and hardly more than a round."""
    hidden = ("model.hidden=16",) if tiny and figure.section == "shakespeare" else ()
    config = _composed(
        *figure.overrides, *hidden, f"precision={'fp32' if tiny else PRECISION}", f"data={data}"
    )  # many CPUs are slow in bf16
    if tiny:
        config.batch_size = -(-config.batch_size // 16)
        config.J = None if config.J is None else -(-config.J // 8)
        config.dataset.validation = 0.02
        if isinstance(config.dataset, TextDataset):
            config.dataset.users, config.dataset.min_samples = 10, 100
    found = [resolve(replace(config, seed=seed)) for seed in seeds]
    return [replace(each, budget=_hardly_more_than_a_round(each)) if tiny else each for each in found]


def _hardly_more_than_a_round(run: Experiment) -> int:
    """In samples; where a round is a pass, a few steps."""
    return run.batch_size + 40 if run.J is None or run.round_samples is None else run.round_samples * 5 // 4


def _composed(*overrides: str) -> Config:
    """The configuration as the command line composes it, sections of the report included."""
    register_schema()
    with initialize_config_dir(str(PROJECT / "conf")):
        composed = compose("config", overrides=[f"hydra.searchpath=[file://{PROJECT / 'sweeps'}]", *overrides])
    with open_dict(composed):
        composed.pop("hydra", None)
    return typed(composed)


class TooLate(Exception):
    """A figure would not be finished in time."""


def train(runs: list[Experiment], engine: str, deadline: float = float("inf")) -> tuple[list[list[Metrics]], float, str]:
    """Train runs together: their rows of metrics at each evaluation, the seconds it took, and the engine.

    Raises:
        TooLate: as soon as it shows that they would not end before `deadline`, a time of `time.perf_counter`.
    """
    began, looked = time.perf_counter(), 0.0
    trainer = Trainer(*runs, engine=engine, device=DEVICE, notify=lambda line: print(f"  {line}", flush=True))
    everyone = range(len(runs))
    marks = list(MARKS)
    rows: list[list[Metrics]] = []
    while not trainer.finished:
        trainer.run_round()
        done = trainer.runs[0].done
        if marks and done >= marks[0] and not trainer.finished:
            marks = [mark for mark in marks if mark > done]
            rows.append(trainer.evaluate(everyone))
        if time.perf_counter() - looked > 0.5:  # launches run ahead of the GPU; to wait for it now and then costs nothing
            synchronize()
            looked = time.perf_counter()
            if looked > deadline or (done > 0.1 and began + (looked - began) / done > deadline):
                raise TooLate(f"{done:.0%} done after {looked - began:.0f} s")
    rows.append(trainer.evaluate(everyone))
    return rows, time.perf_counter() - began, trainer.engine_name


def entry(figure: Figure, runs: list[Experiment], rows: list[list[Metrics]], seconds: float, engine: str) -> dict[str, Any]:
    """What is kept of a figure: of each seed the final row, the mean test accuracy of the last ten evaluations but one, and the curve."""
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    final = {key: [row[key] for row in rows[-1]] for key in ("val/acc", "test/acc", "train/loss", "val/loss", "test/loss", "round")}
    curve = [[row["test/acc"] for row in each] for each in rows]
    late = [each for each in curve[-11:-1] if None not in each] or curve[-1:]
    return {
        "name": figure.name,
        "overrides": list(figure.overrides),
        "seeds": [run.seed for run in runs],
        "precision": PRECISION,
        **final,
        "test/acc late": [statistics.fmean(float(each[run] or 0) for each in late) for run in range(len(runs))],
        "curve": {"samples": [each[0]["samples"] for each in rows], "test/acc": curve},
        "samples": sum(run.budget for run in runs),
        "seconds": seconds,
        "engine": engine,
        "card": card,
        "torch": torch.__version__,
    }


def predicted_seconds(section: str, samples: int, entries: list[dict[str, Any]]) -> float:
    """Seconds that so many samples of a section will take: at the rate of the last figure of it, else at the one that is assumed."""
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    rates = [each["samples"] / each["seconds"] for each in entries if each["name"].startswith(f"{section}:") and each["card"] == card]
    return samples / (rates[-1] if rates else SECTIONS[section].rate)


def run_all(chosen: list[Figure], data: Path, out: Path, *, seconds: float, engine: str | None, tiny: bool) -> int:
    """Train what is not in `out` yet, in order; what would not end in time is passed over. How many figures failed."""
    began = time.perf_counter()
    kept: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"machine": _machine(), "tiny": tiny, "figures": []}
    if kept["tiny"] != tiny:
        raise UserError(f"{out} holds {'tiny' if kept['tiny'] else 'real'} figures: name another file with --out")
    entries: list[dict[str, Any]] = kept["figures"]
    finished = {each["name"]: each["overrides"] for each in entries}
    failed = 0
    for figure in chosen:
        if figure.name in finished:
            stale = (
                ""
                if finished[figure.name] == list(figure.overrides)
                else ", with other settings: remove it from the file to train it again"
            )
            print(f"{figure.name}: finished before{stale}", flush=True)
            continue
        left = seconds - (time.perf_counter() - began)
        if left <= 0:
            print(f"{figure.name}: no time left", flush=True)
            continue
        try:
            runs = experiments(figure, data, tiny)
            expected = predicted_seconds(figure.section, sum(run.budget for run in runs), entries)
            if 0.9 * expected > left:
                print(f"{figure.name}: passed over; it would take about {expected:.0f} s, and {left:.0f} s are left", flush=True)
                continue
            text = isinstance(runs[0].dataset, TextDataset)
            fastest = "auto" if DEVICE == "cpu" else "graph" if text else "graph-loop"  # what auto chose on an H100, without its measuring
            found = entry(figure, runs, *train(runs, engine or fastest, began + seconds))
        except TooLate as late:
            print(f"{figure.name}: given up, it would not end in time ({late})", flush=True)
            continue
        except Exception as error:  # the others can still be had
            failed += 1
            print(f"{figure.name}: failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            continue
        finally:
            gc.collect()  # graphs and their memory
            torch.cuda.empty_cache()
        entries.append(found)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (json.dumps(kept, indent=1) + "\n").encode())
        rate = found["samples"] / found["seconds"]
        print(
            f"{figure.name}: val {mean_and_deviation(found['val/acc'], 100)}, test {mean_and_deviation(found['test/acc'], 100)}, "
            f"train loss {mean_and_deviation(found['train/loss'], digits=3)}; {found['seconds']:.1f} s, {rate:,.0f} samples/s, "
            f"{found['engine']}; reported: {figure.reported or 'nothing'}",
            flush=True,
        )
    return failed


def mean_and_deviation(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Over seeds."""
    scaled = [value * scale for value in values]
    deviation = f" ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{statistics.fmean(scaled):.{digits}f}{deviation}"


def _machine() -> dict[str, Any]:
    """What trains; without the commit where there is no git."""
    try:
        return machine()
    except OSError:
        return {"gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None, "torch": torch.__version__, "commit": None}


def tables(entries: list[dict[str, Any]]) -> str:
    """The Markdown tables of what is there, mean ± standard deviation over the seeds, and what is missing."""
    by_name = {each["name"]: each for each in entries}
    lines: list[str] = []
    for key, section in SECTIONS.items():
        rows = [figure for figure in figures() if figure.section == key]
        there = [figure for figure in rows if figure.name in by_name]
        if not there:
            continue
        seeds = len(by_name[there[0].name]["seeds"])
        lines += [
            f"### {section.title}",
            "",
            f"{section.common[0].upper()}{section.common[1:]}; {PRECISION}, {seeds} seeds, the final model.",
            "",
        ]
        lines += [
            "| setting | validation, % | test, % | mean of late test, % | training loss | reported test, % | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for figure in there:
            each = by_name[figure.name]
            accuracies = [mean_and_deviation(each[column], 100) for column in ("val/acc", "test/acc", "test/acc late")]
            cells = [
                figure.setting,
                *accuracies,
                mean_and_deviation(each["train/loss"], digits=3),
                figure.reported,
                f"{each['seconds']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", section.differs]
        if len(there) < len(rows):
            lines.append(f"Not trained yet: {'; '.join(figure.setting for figure in rows if figure.name not in by_name)}.")
        lines.append("")
    lines.append("Reports: " + "; ".join(f"{name}: {source}" for name, source in SOURCES.items()) + ".")
    return "\n".join(lines)


def small_data(folder: Path) -> None:
    """Made-up images and text in the real formats, for `--tiny`."""
    from tests.support.make import write_cifar100, write_shakespeare

    write_cifar100(folder, train=10_000, test=100)  # enough for a batch of 8192
    write_shakespeare(folder, roles=10, lines=20)


def main() -> None:
    """Train and keep the figures, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON; default outputs/gpu-tables.json, with --tiny outputs/gpu-tables-tiny.json")
    parser.add_argument("--data", type=Path, default=PROJECT / "data", help="folder with cifar100.npz and shakespeare/")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end before this time")
    parser.add_argument("--only", default="", metavar="PATTERN", help="figures with this in their names, as in `localsgd: K=2`")
    parser.add_argument(
        "--engine", choices=["auto", *ENGINES], help="default: on a GPU graph-loop for images and graph for text, else auto"
    )
    parser.add_argument("--tiny", action="store_true", help="every figure with about a round on made-up data: shows that everything runs")
    parser.add_argument("--table", action="store_true", help="print the tables of the JSON and train nothing")
    arguments = parser.parse_args()
    out: Path = arguments.out or PROJECT / "outputs" / f"gpu-tables{'-tiny' if arguments.tiny else ''}.json"
    if arguments.table:
        if not out.exists():
            sys.exit(f"error: {out} does not exist; train first, or name the file with --out")
        print(tables(json.loads(out.read_text())["figures"]))
        return
    chosen = [figure for figure in figures() if arguments.only.lower() in figure.name.lower()]
    if not chosen:
        sys.exit(f"error: --only {arguments.only}: no figure has this in its name; sections are {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory(prefix="gpu-tables-") as scratch:
        if arguments.tiny:
            small_data(Path(scratch))
        data = Path(scratch) if arguments.tiny else arguments.data
        try:
            failed = run_all(chosen, data, out, seconds=arguments.seconds, engine=arguments.engine, tiny=arguments.tiny)
        except UserError as error:
            sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
