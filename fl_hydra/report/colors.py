"""Colours: the same one for each method and optimizer everywhere, distinguishable with colour blindness too."""

from __future__ import annotations

from collections.abc import Sequence

from fl_hydra.report.axes import Axis, Value, in_order

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, WINE, GREY = "#CC79A7", "#56B4E9", "#882255", "#4D4D4D"
"""From Okabe and Ito (Color Universal Design, 2008), except its yellow, which is invisible on white; wine is Paul Tol's."""

PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, WINE, GREY)

METHODS = {
    "Centralized": GREY,
    "LocalSGD": BLUE,
    "SlowMo": VERMILION,
    "DiLoCo": GREEN,
    "Lookahead": "#BDB76B",
    "Post-local SGD": ORANGE,
    "Hierarchical": "#9E9AC8",
    "Gossip": "#01665E",
    "Gossip-PGA": "#AAAA00",
    "Gossip-AGA": "#AAAAAA",
    "A2CiD2": "#AA7744",
    "AD-PSGD": "#225522",
    "Async SGD": SKY,
    "Staleness-aware SGD": "#663333",
    "EASGD": "#B2182B",
    "SHAT": "#C51B7D",
    "FedAvg": "#F781BF",
    "FedAvgM": "#661100",
    "FedAdagrad": "#BB5566",
    "FedAdam": "#4D9221",
    "FedYogi": "#0044AA",
    "FedSGD": "#006688",
    "FedNova": "#6688EE",
    "FedDyn": "#0000EE",
    "FedDC": "#008888",
    "FedExP": "#664444",
    "FedProx": "#6699CC",
    "SCAFFOLD": "#000099",
    "FedSAM": "#99CC33",
    "FedPer": "#330033",
    "GHBM": "#002266",
    "LocalGHBM": "#88CCEE",
    "FedHBM": "#222222",
    "FedCM": "#222200",
    "Mime": "#4466EE",
    "MimeLite": "#2244EE",
    "FedASAM": "#8822AA",
    "FedSpeed": "#AACC66",
    "FedLC": "#880066",
    "FedRS": "#88CCAA",
    "FedDecorr": "#CC0044",
    "FedIR": "#442266",
    "MOON": "#88CC88",
    "FedBN": "#CC7722",
    "FedVC": "#884400",
    "CCVR": "#CCCC00",
    "Local": "#333300",
    "FedAvg-FT": "#B3004D",
    "LG-FedAvg": "#808033",
    "FedRep": "#1A33CC",
    "FedBABU": "#FFB300",
    "FedAlt": "#1A4D80",
    "FedSim": "#00B3FF",
    "Ditto": "#FF1A00",
    "pFedMe": "#FF99FF",
    "APFL": "#CCCC66",
    "FedROD": "#9900CC",
    "FedALA": "#4D8099",
    "Per-FedAvg": "#001A80",
    "kNN-Per": "#334D4D",
    "pFedHN": "#331AFF",
    "pFedHR": "#B3CC99",
}
"""One for each method. Those of a section are at least 24 apart in CIELAB, also with green-blindness (Machado et al., 2009)."""

OPTIMIZERS = {"sgd": SKY, "sgdm": BLUE, "adamw": VERMILION, "lars": GREEN, "lamb": ORANGE, "adam": PURPLE}

SCHEDULERS = {"constant": GREY, "cosine": BLUE, "step": VERMILION, "linear": GREEN, "exponential": PURPLE, "polynomial": ORANGE}

RULES = {
    "fixed": BLUE, "linear": VERMILION, "doubling": GREEN, "post_local": ORANGE, "loss": PURPLE, "drift": SKY, "noise": WINE, "square": GREY
}  # fmt: skip
"""Colours of the rules for local steps; rules that are also methods share the methods' colours."""

DIVISIONS = {"iid": GREY, "natural": BLUE, "classes": VERMILION, "dirichlet": GREEN, "dirichlet_classes": ORANGE, "quantity": PURPLE}

MODELS = {
    "lenet": GREY, "lenet_bn": ORANGE, "lenet_gn": BLUE, "lenet_ln": SKY, "resnet20": VERMILION, "resnet20_gn": GREEN, "vit": PURPLE,
    "convnext": WINE, "convmixer": "#BDB76B",
}  # fmt: skip

FIXED = {
    "method": METHODS, "model": MODELS, "optimizer": OPTIMIZERS, "scheduler": SCHEDULERS, "local_steps": RULES, "sharding": DIVISIONS
}  # fmt: skip
"""By axis: the values whose colour is the same in every figure."""

SEQUENCE = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39")
"""Dark to light (viridis without its yellow), for numbers."""


def colors(axis: Axis, values: Sequence[Value]) -> dict[Value, str]:
    """A colour for each value of an axis, as #rrggbb: numbers from dark to light, None grey, names from the palette."""
    ordered = in_order(values)
    fixed = FIXED.get(axis.name, {})
    numbers = [value for value in ordered if isinstance(value, int | float) and not isinstance(value, bool)]
    found: dict[Value, str] = {}
    for value in ordered:
        if value in numbers:
            step = (len(SEQUENCE) - 1) / max(1, len(numbers) - 1)
            found[value] = SEQUENCE[round(numbers.index(value) * step)] if len(numbers) > 1 else BLUE
        elif value is None:
            found[value] = GREY
        else:
            taken = {*found.values(), *(fixed[each] for each in map(str, ordered) if each in fixed)}
            free = [each for each in PALETTE if each not in taken] or list(PALETTE)
            found[value] = fixed.get(str(value)) or free[0]
    return found


def ink(color: str) -> str:
    """A colour for text on white: light ones are darkened to be readable."""
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255
    return color if light <= 0.45 else "#" + "".join(f"{round(part * 0.45 / light):02x}" for part in parts)


def palette_of_one(methods: Sequence[str]) -> str:
    """The colour of figures with one series: the method's, if there is one method."""
    return METHODS.get(methods[0], BLUE) if len(set(methods)) == 1 else BLUE
