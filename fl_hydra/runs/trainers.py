"""Trainers of runs, made under the conditions that the runs are to be trained under."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fl_hydra.runs.conditions import Conditions, Wish
from fl_hydra.runs.recording import Recording

if TYPE_CHECKING:
    from fl_hydra.training.trainer import Trainer


def chosen_device(device: str) -> str:
    """`device=auto` is the GPU, where there is one."""
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def new_trainer(recordings: Sequence[Recording], wish: Wish, device: str, notify: Callable[[str], None] = lambda line: None) -> Trainer:
    """A trainer of runs before their first round, under the conditions that are wished for.

    Raises:
        UserError: the shards cannot be made.
    """
    import torch

    from fl_hydra.training.trainer import Trainer

    default = _default_threads()
    torch.set_num_threads(wish.threads or default)
    return Trainer(
        *(recording.experiment for recording in recordings),
        engine=wish.engine,
        device=device,
        client_folders=[recording.folder.checkpoints / "clients" for recording in recordings],
        state_on=recordings[0].config.state_on,
        rows_at_once=wish.rows_at_once,
        samples_at_once=wish.samples_at_once,
        notify=notify,
    )


@lru_cache(maxsize=1)
def _default_threads() -> int:
    """PyTorch's default number of threads, read before any run has changed it."""
    import torch

    return torch.get_num_threads()


def common_wish(recordings: Sequence[Recording]) -> Wish:
    """The conditions that runs are to be trained under together: those that one of them was begun under, if any was begun."""
    return next((recording.wish for recording in recordings if recording.begun is not None), recordings[0].wish)


def under_equal_conditions(recordings: Sequence[Recording], device: str) -> list[Recording]:
    """The runs to train next: some that were begun under equal conditions, and those not begun that would get the same."""
    wish = common_wish(recordings)
    fresh = [recording for recording in recordings if recording.begun is None]
    if fresh and wish != fresh[0].wish and Wish.met_by(Conditions.now(new_trainer([fresh[0]], fresh[0].wish, device))) == wish:
        return [recording for recording in recordings if recording.wish == wish or recording.begun is None]
    return [recording for recording in recordings if recording.wish == wish]
