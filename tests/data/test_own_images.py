"""Images of the user's own: a folder, an npz file; labels, test sets, clients, and what is kept of what was decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.data import dataset as description
from fl_hydra.data import images as loading
from fl_hydra.data.decoding import decode
from fl_hydra.data.folder import Folder
from fl_hydra.data.images import Arrays
from fl_hydra.data.npz import Npz
from fl_hydra.errors import UserError
from fl_hydra.runs.identity import run_hash
from tests.support.data_files import encoded, made_up, write_folder
from tests.support.make import experiment, trainer


def write_npz(path: Path, arrays: Arrays, **others: Any) -> Path:
    """An npz file; a value None leaves an array out."""
    values: dict[str, Any] = {
        "x_train": arrays.train_images,
        "y_train": arrays.train_labels,
        "x_test": arrays.test_images,
        "y_test": arrays.test_labels,
    } | others
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return path


def new_process() -> None:
    description.read_info.cache_clear()
    loading.load_arrays.cache_clear()


def refused(dataset: Npz | Folder, root: Path) -> str:
    """The line of a dataset that cannot be used."""
    with pytest.raises(UserError) as error:
        dataset.sample_counts(dataset.info(root))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_npz_and_a_folder_of_the_same_images_are_the_same_dataset(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(60)
    shuffled = Arrays(arrays.train_images[order], arrays.train_labels[order], arrays.test_images, arrays.test_labels)
    write_folder(tmp_path / "pictures", arrays)
    npz = Npz(path=str(write_npz(tmp_path / "own.npz", shuffled)))
    folder = Folder(path=str(tmp_path / "pictures"))
    expected = arrays.canonical()
    assert npz.load(root).fingerprint() == folder.load(root).fingerprint() == expected.fingerprint()
    assert npz.info(root) == folder.info(root)
    assert npz.info(root).train_counts == (20, 20, 20)


def test_the_path_is_not_part_of_a_runs_name_but_the_content_is(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one, with a comma.npz", tmp_path / "two.npz", tmp_path / "other.npz"]
    for path in paths:
        write_npz(path, made_up(3, 60, 12, 8, 3, seed=1) if path.stem == "other" else arrays)
    names = [run_hash(experiment("dataset=npz", f"dataset.path='{path}'", "model=small", "batch_size=8", f"data={root}")) for path in paths]
    assert names[0] == names[1] != names[2]


def test_a_run_trains_on_them_and_on_one_channel(root: Path, tmp_path: Path) -> None:
    arrays = made_up(3, 60, 12, 8, 1)
    path = write_npz(tmp_path / "grey.npz", arrays, x_train=arrays.train_images[..., 0], x_test=arrays.test_images[..., 0])
    run = trainer("dataset=npz", f"dataset.path={path}", "model=small", f"data={root}", "batch_size=8", "samples=64")
    assert run.sole_run.experiment.dataset_info.shape == (1, 8, 8)
    run.run_round()


# ------------------------------------------------------------------------------------------------------------------- clients


def test_clients_of_an_npz_are_a_natural_division(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    names = np.array(["ann", "bob", "cid", "dan"])[np.minimum(np.arange(60) // 12, 3)]
    path = write_npz(tmp_path / "own.npz", arrays, client=names)
    words = ("dataset=npz", f"dataset.path={path}", "model=small", f"data={root}", "algorithm=fedavg", "C=0.5", "batch_size=4", "rounds=1")
    e = experiment(*words, "sharding=natural")
    assert (e.K, e.m) == (4, 2)
    own = e.dataset.sample_owners(e.data, e.split_seed)
    shards = e.sharding.shards(own, e.K, None, 0)
    assert shards.sizes.tolist() == [11, 11, 11, 22], "a tenth of each client's images is held out"
    counts = e.dataset.sample_counts(e.dataset_info, 0)
    assert counts.users is not None and own.labels is not None
    assert counts.users.tolist() == [11, 11, 11, 22]
    assert counts.classes is not None and counts.classes.tolist() == np.bincount(own.labels).tolist()
    found = e.dataset.load(e.data)  # type: ignore[attr-defined]
    train, validation = e.dataset.split(found.train_labels, 0, found.train_clients)  # type: ignore[attr-defined]
    assert len(validation) == 5 and not set(train) & set(validation)
    for client, name in enumerate(sorted(set(names))):
        held = {image.tobytes() for image in arrays.train_images[names == name]}
        assert {found.train_images[train[at]].tobytes() for at in shards[client]} < held
    trainer(*words, "sharding=natural").run_round()
    for other in ("sharding=iid", "sharding=dirichlet"):
        assert experiment(*words, other, "K=3").K == 3
    with pytest.raises(UserError, match="a client for each of the 4 users of the dataset; choose K=4, or sharding=iid"):
        experiment(*words, "sharding=natural", "K=3")


def test_clients_too_small_for_any_validation_are_one_line(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    dataset = Npz(path=str(write_npz(tmp_path / "own.npz", arrays, client=np.arange(60) // 3)))
    assert "no client has images enough that one would be held out; choose a larger" in refused(dataset, root)
    assert replace(dataset, validation=0).sample_counts(dataset.info(root)).total == 60
    assert replace(dataset, validation=0.4).sample_counts(dataset.info(root)).total == 40


def test_the_order_of_the_file_decides_nothing_even_where_clients_have_equal_images(root: Path, tmp_path: Path) -> None:
    arrays = made_up(2, 24, 6, 8, 1)
    doubled = replace(arrays, train_images=np.tile(arrays.train_images[:6], (4, 1, 1, 1)), train_labels=np.tile(arrays.train_labels[:6], 4))
    clients = np.repeat([7, 3, 5, 9], 6)
    prints = []
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(24)
        path = write_npz(
            tmp_path / f"{seed}.npz",
            replace(doubled, train_images=doubled.train_images[order], train_labels=doubled.train_labels[order]),
            client=clients[order],
        )
        prints.append(Npz(path=str(path)).info(root).fingerprint)
    assert prints[0] == prints[1]
    other = write_npz(tmp_path / "other.npz", doubled, client=np.arange(24) % 4)
    assert Npz(path=str(other)).info(root).fingerprint != prints[0]


# ------------------------------------------------------------------------------------------------------------------ test sets


def test_a_test_set_is_split_off_by_class_and_is_always_the_same(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", arrays, parts=("",))
    folder = Folder(path=str(tmp_path / "pictures"), test=0.2)
    found = folder.load(root)
    assert np.bincount(found.train_labels).tolist() == [16, 16, 16] and np.bincount(found.test_labels).tolist() == [4, 4, 4]
    parts = [{image.tobytes() for image in images} for images in (found.train_images, found.test_images, arrays.train_images)]
    assert parts[0] | parts[1] == parts[2] and not parts[0] & parts[1]
    order = np.random.default_rng(1).permutation(60)
    path = write_npz(
        tmp_path / "own.npz", arrays, x_train=arrays.train_images[order], y_train=arrays.train_labels[order], x_test=None, y_test=None
    )
    assert Npz(path=str(path), test=0.2).load(root).fingerprint() == found.fingerprint()
    assert Npz(path=str(path), test=0.3).info(root).test_counts == (6, 6, 6)


# ------------------------------------------------------------------------------------------------------------- bad npz files


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"x_train": None},
            "lacks x_train; an .npz file with x_train, y_train, x_test and y_test is needed, and it has x_test, y_test, y_train",
        ),
        ({"y_test": None}, "lacks y_test"),
        ({"x_test": None, "y_test": None}, "has no test set; add one, or .*dataset.test=0.2"),
        ({"x_train": lambda a: (a.train_images / 255).astype(np.float32)}, r"x_train is float32; uint8 from 0 to 255 is needed.*np.rint"),
        ({"x_train": lambda a: a.train_images.transpose(0, 3, 1, 2)}, r"\[60, 3, 8, 8\], with channels first.*np.transpose"),
        ({"x_train": lambda a: a.train_images.reshape(60, -1)}, r"\[60, 192\]; \[N, height, width, channels\]"),
        ({"x_test": lambda a: a.test_images[:, :6]}, "training images have shape 8x8x3 and test images 6x8x3"),
        ({"y_train": lambda a: a.train_labels[:9]}, r"y_train has shape \[9\] and type int64; .* 60 images"),
        ({"y_train": lambda a: a.train_labels.astype(float)}, "type float64; a whole number"),
        ({"y_train": lambda a: a.train_labels + 1}, "labels go from 1 to 3, but none is 0; number the 3 classes from 0"),
        ({"y_train": lambda a: a.train_labels * 2}, "labels go from 0 to 4, but none is 1"),
        ({"y_train": lambda a: a.train_labels * 0}, "all training images have the same label; at least 2 classes"),
        ({"y_test": lambda a: a.test_labels - 1}, "a test image has the label -1"),
        ({"y_test": lambda a: a.test_labels + 1}, "a test image has the label 3, and training images 0 to 2"),
        ({"x_test": lambda a: a.test_images[:0], "y_test": lambda a: a.test_labels[:0]}, r"x_test has shape \[0, 8, 8, 3\]"),
        ({"client": lambda a: np.zeros(59, int)}, r"client has shape \[59\] and type int64; .* 60 training images"),
        ({"client": lambda a: np.zeros(60)}, "type float64; a whole number or a name"),
        ({"y_train": lambda a: a.train_labels.astype(object)}, "cannot be read .*allow_pickle"),
    ],
)
def test_a_bad_npz_is_one_line(
    change: dict[str, Callable[[Arrays], Any] | None], says: str, arrays: Arrays, root: Path, tmp_path: Path
) -> None:
    import re

    path = write_npz(tmp_path / "own.npz", arrays, **{name: None if make is None else make(arrays) for name, make in change.items()})
    assert re.search(says, line := refused(Npz(path=str(path)), root)), line


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Npz(), "an .npz file with x_train, y_train, x_test and y_test is needed; name it with dataset.path=PATH"),
        (Npz(path="nowhere.npz"), "dataset.path=nowhere.npz: there is no such file or folder"),
        (Npz(path="/"), "this is a folder"),
        (Folder(), "dataset=folder: a folder with train/CLASS"),
        (Folder(path=__file__), "this is a file"),
    ],
)
def test_a_path_to_nothing_is_one_line(dataset: Npz | Folder, says: str, root: Path) -> None:
    assert says in refused(dataset, root)


@pytest.mark.parametrize("content", [b"", b"text", "cut", "npy"])
def test_a_damaged_npz_is_one_line(content: bytes | str, arrays: Arrays, root: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", arrays)
    if content == "npy":
        with open(path, "wb") as file:
            np.save(file, arrays.train_images)
    else:
        path.write_bytes(path.read_bytes()[:-500] if isinstance(content, str) else content)
    line = refused(Npz(path=str(path)), root)
    assert "cannot be read" in line or "lacks x_train and y_train" in line


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"validation": 0.01}, "dataset.validation=0.01: of the 20 training images of class 0, 0 would be held out; at least one"),
        ({"validation": 0.99}, "of the 20 training images of class 0, 20 would be held out"),
        ({"test": 0.5}, "dataset.test=0.5: .*has a test set of its own; leave dataset.test out"),
    ],
)
def test_fractions_that_leave_a_class_empty_are_one_line(
    fields: dict[str, float], says: str, arrays: Arrays, root: Path, tmp_path: Path
) -> None:
    import re

    path = write_npz(tmp_path / "own.npz", arrays)
    assert re.search(says, line := refused(Npz(path=str(path), **fields), root)), line  # type: ignore[arg-type]
    assert Npz(path=str(path), validation=0).sample_counts(Npz(path=str(path)).info(root)).total == 60


def test_a_test_fraction_that_takes_nothing_of_a_class_is_one_line(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", arrays, x_test=None, y_test=None)
    assert "of the 20 images of class 0, 0 would be for the test set" in refused(Npz(path=str(path), test=0.01), root)
    with pytest.raises(UserError, match=r"dataset.test=1: a fraction above 0 and below 1"):
        Npz(test=1)


# ---------------------------------------------------------------------------------------------------------------- bad folders


def no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")


def hidden(folder: Path) -> None:
    for path in (folder / "train" / "b").iterdir():
        path.rename(path.with_name(f".{path.name}"))


def other_size(folder: Path) -> None:
    (folder / "train" / "c" / "z.png").write_bytes(encoded(np.zeros((9, 8, 3), np.uint8)))


def sixteen_bits(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "train" / "c" / "z.png")


def cut(folder: Path) -> None:
    path = folder / "test" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_test, "has train/ and no test/; rename val/ to test/ if it is one, or .*dataset.test=0.2"),
        (lambda folder: (folder / "train").rename(folder / "other"), "has test/ and no train/"),
        (hidden, "train/b holds no image"),
        (lambda folder: (folder / "test" / "c").rename(folder / "test" / "d"), "test/d is a class that train/ lacks"),
        (other_size, r"z.png has 9x8 pixels, and .*a/0.png has 8x8: all images need one size; .*dataset.side=32"),
        (sixteen_bits, "z.png has more than 8 bits a channel"),
        (cut, r"test/a/0.png cannot be read as an image \(.*\); replace or delete it"),
        (lambda folder: (folder / "train" / "a" / "x.jpg").write_text("no picture"), "x.jpg cannot be read as an image .cannot identify"),
    ],
)
def test_a_bad_folder_is_one_line(damage: Callable[[Path], None], says: str, arrays: Arrays, root: Path, tmp_path: Path) -> None:
    import re

    write_folder(tmp_path / "pictures", arrays)
    damage(tmp_path / "pictures")
    assert re.search(says, line := refused(Folder(path=str(tmp_path / "pictures")), root)), line
    assert not list(root.iterdir()), "nothing is kept of it"


def test_a_folder_with_one_class_is_one_line(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", arrays, names="aaa", parts=("",))
    assert "has 1 folders of classes; at least 2" in refused(Folder(path=str(tmp_path / "pictures"), test=0.2), root)


# -------------------------------------------------------------------------------------------------------------------- decoding


def test_pictures_of_any_kind_become_three_channels_or_one() -> None:
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    assert (decode(encoded(colours), "x") == colours).all()
    grey = decode(encoded(colours), "x", grey=True)
    luma = (colours.astype(np.int64) * [19595, 38470, 7471]).sum(-1) + 0x8000 >> 16
    assert grey.shape == (6, 5, 1) and (grey[..., 0] == luma).all(), "ITU-R 601-2, as Pillow rounds it"
    assert (decode(encoded(colours[..., :1]), "x") == colours[..., :1].repeat(3, -1)).all()
    for mode in ("RGBA", "P", "LA", "1", "CMYK"):
        import io

        buffer = io.BytesIO()
        Image.fromarray(colours).convert(mode).save(
            buffer, "TIFF" if mode == "CMYK" else "PNG", **({"transparency": 0} if mode == "P" else {})
        )
        assert decode(buffer.getvalue(), mode).shape == (6, 5, 3)
    assert (decode(encoded(np.full((7, 9, 3), 77, np.uint8)), "x", side=4) == np.full((4, 4, 3), 77)).all()


def test_what_was_decoded_is_kept_and_made_again_when_a_file_changes(
    arrays: Arrays, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "pictures", arrays)
    dataset = Folder(path=str(tmp_path / "pictures"))
    calls: list[int] = []
    original = Folder._decoded

    def counted(self: Folder, files: list[str]) -> Any:
        calls.append(len(files))
        return original(self, files)

    monkeypatch.setattr(Folder, "_decoded", counted)
    first = dataset.info(root)
    (kept,) = root.glob("*.npz")
    assert len(list(root.iterdir())) == 2, "and a description"
    for expected in (2, 2):
        new_process()
        assert dataset.load(root).fingerprint() == first.fingerprint
        assert len(calls) == expected
    for damage in (kept.read_bytes()[:-900], b"", b"x" * 40):
        kept.write_bytes(damage)
        calls.clear()
        new_process()
        assert dataset.load(root).fingerprint() == first.fingerprint
        assert len(calls) == 2, "it is only a cache"
    picture = tmp_path / "pictures" / "train" / "a" / "0.png"
    picture.write_bytes(encoded(255 - arrays.train_images[0]))
    os.utime(picture, ns=(1, 1))
    new_process()
    assert dataset.info(root).fingerprint != first.fingerprint
    (tmp_path / "pictures" / "test" / "a" / "0.png").unlink()
    new_process()
    assert dataset.info(root).test_counts == (3, 4, 4)


def test_sizes_and_greys_are_kept_apart(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", arrays)
    path = str(tmp_path / "pictures")
    shapes = [Folder(path=path, side=side, grey=grey).info(root).shape for side, grey in ((None, False), (6, False), (6, True))]
    assert shapes == [(3, 8, 8), (3, 6, 6), (1, 6, 6)]
    new_process()
    assert Folder(path=path).info(root).shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"dataset.side=0: 1 to 4,096"):
        Folder(side=0)


def test_resolving_reads_only_the_description(arrays: Arrays, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pictures", arrays)
    words = ("dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "model=small", "batch_size=8", f"data={root}")
    first = run_hash(experiment(*words))
    new_process()
    next(root.glob("*.npz")).unlink()
    monkeypatch.setattr(Folder, "found", lambda self, path: pytest.fail("pixels were read"))
    assert run_hash(experiment(*words)) == first


def test_a_data_folder_that_cannot_be_written_costs_only_time(arrays: Arrays, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", arrays)
    (tmp_path / "file").write_text("")
    assert Folder(path=str(tmp_path / "pictures")).load(tmp_path / "file" / "data").fingerprint() == arrays.canonical().fingerprint()


def test_a_card_with_clients_is_read_back(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    dataset = Npz(path=str(write_npz(tmp_path / "own.npz", arrays, client=np.arange(60) % 4)))
    first = dataset.info(root)
    assert first.clients == ((5, 5, 5),) * 4
    description.read_info.cache_clear()
    (card,) = root.iterdir()
    assert json.loads(card.read_text())["clients"] == [[5, 5, 5]] * 4
    assert dataset.info(root) == first
    dataset.check_loaded(root, first)
