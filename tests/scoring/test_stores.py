import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import png

from dfganext.errors import UserError
from dfganext.scoring import stores


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Several kinds of files, in the working directory. With local://, pyarrow reads them like an object store."""
    for name in ("a/1.png", "a/2.png", "a/deep/3.png", "b [1]/4.png", "a-b/5.png", "b [1]/unnamed"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(png(0, 1))
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def names(listing, root):
    return [
        os.path.relpath(image.path.removeprefix("file://").removeprefix("local://"), root) for image in listing.images
    ]


ALL = ["a-b/5.png", "a/1.png", "a/2.png", "a/deep/3.png", "b [1]/4.png", "b [1]/unnamed"]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["in"], ALL),
        (["in/a", "in", "in/a/1.png"], ALL),
        (["file://{root}"], ALL),
        (["file://{root}/b%20%5B1%5D"], ALL[4:]),
        (["in/b [1]"], ALL[4:]),
        (["in/*/[12].png"], ["a/1.png", "a/2.png"]),
        (["in/a/*"], ["a/1.png", "a/2.png", "a/deep/3.png", "a/notes.txt"]),
        (["in/**/*.png"], ALL[:5]),
        (["in/a/notes.txt", "in/a/2.png"], ["a/2.png", "a/notes.txt"]),
        (["local://{root}"], ALL),
        (["local://{root}/"], ALL),
        (["local://{root}/b%20%5B1%5D"], ALL[4:]),
        (["local://{root}/b [1]/unnamed"], ["b [1]/unnamed"]),
    ],
)
def test_places_stand_for_images(tree, places, expected):
    listing = stores.images_at([place.format(root=tree) for place in places])
    assert names(listing, tree) == expected
    assert listing.remote == ("://" in places[0])


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (["in", "none"], "none does not exist"),
        (["in/*.bmp"], "in/*.bmp does not exist, or matches nothing"),
        (["file://elsewhere/in"], "file://elsewhere/in cannot be used"),
        (["in", "s3://bucket/in"], "give one address per run"),
        (["local:///none"], "local:///none does not exist"),
        (["local:///none/*.png"], "local:///none/*.png does not exist"),
        (["gopher://host/in"], "gopher://host/in cannot be used"),
        (["s3:///in"], "s3:///in cannot be used"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(tree, places, sentence):
    with pytest.raises(UserError) as error:
        stores.images_at(places)
    assert sentence in str(error.value)
    assert "give" in str(error.value) or "exist" in str(error.value)


def test_a_pipe_below_an_address_is_no_image(tree):
    os.mkfifo(tree / "a" / "pipe.png")
    assert names(stores.images_at([f"local://{tree}"]), tree) == ALL


@pytest.mark.parametrize("address", ["{root}/a/1.png", "local://{root}/a/1.png"])
def test_the_function_that_reads_images_can_be_pickled(tree, address):
    listing = stores.images_at([address.format(root=tree)])
    read = pickle.loads(pickle.dumps(listing.read))
    (image,) = listing.images
    assert read(image.path) == png(0, 1)
    (tree / "a" / "1.png").unlink()
    reason, temporary = read(image.path)
    assert reason.startswith("cannot be read (") and temporary


def test_names_that_are_not_utf8(tree):
    odd = Path(os.fsdecode(bytes(tree / "caf") + b"\xe9.png"))
    odd.write_bytes(png(0, 1))
    listing = stores.images_at(["in"])
    assert str(odd) in {image.path for image in listing.images}
    assert listing.read(str(odd)) == png(0, 1)


def test_an_address_is_shown_without_credentials_and_options():
    place = stores.Folder.at("s3://key:secret@bucket/my%20set/?region=eu-west-1")
    assert (place.name, place.path) == ("s3://bucket/my set", "bucket/my set")
    assert place._path_of("s3://bucket/my set/a/1.png") == "bucket/my set/a/1.png"
    place = stores.Folder.at("abfs://container@account.dfs.core.windows.net/set")
    assert (place.name, place.path) == ("abfs://container@account.dfs.core.windows.net/set", "container/set")


@pytest.mark.parametrize("address", ["{root}/out", "local://{root}/out"])
def test_folders_hold_complete_files(tmp_path, address):
    folder = pickle.loads(pickle.dumps(stores.Folder.at(address.format(root=tmp_path))))
    assert folder.names() == set()
    folder.write("part", b"first")
    folder.write("part", b"second")
    assert folder.names() == {"part"}
    assert folder.read("part") == b"second"
    with pytest.raises(FileNotFoundError):
        folder.read("other")
    with pytest.raises(UserError, match=r"part cannot be accessed .*Not a directory"):
        stores.Folder.at(address.format(root=tmp_path) + "/part").names()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        stores.Folder.at(str(tmp_path)).write("part", b"rows")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be accessed"):
        stores.Folder.at(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9")).names()


@pytest.mark.parametrize("address", ["{root}/out", "local://{root}/out"])
def test_a_file_is_created_once(tmp_path, address):
    folder = stores.Folder.at(address.format(root=tmp_path))
    folder.create("record", b"first")
    folder.create("record", b"second")
    assert folder.read("record") == b"first"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["record"]


@pytest.mark.parametrize("address", ["{root}/a", "{root}/a/1.png", "local://{root}/a", "local://{root}/a/1.png"])
def test_a_listing_has_sizes_and_times(tree, address):
    os.utime(tree / "a" / "1.png", ns=(1, 1_700_000_000_123_456_789))
    first = next(iter(stores.images_at([address.format(root=tree)]).images))
    assert (first.size, first.modified) == (len(png(0, 1)), 1_700_000_000_123_456_789)
    (tree / "a" / "1.png").write_bytes(png(0, 1) + b"more")
    second = next(iter(stores.images_at([address.format(root=tree)]).images))
    assert second.path == first.path
    assert second.size == first.size + 4 and second.modified > first.modified


@pytest.mark.parametrize("address", ["{root}/out", "local://{root}/out"])
def test_a_replaced_file_is_complete_at_any_time(tmp_path, monkeypatch, address):
    folder = stores.Folder.at(address.format(root=tmp_path))
    folder.write("part", b"first")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("broke off")))
    with pytest.raises(OSError, match="broke off"):
        folder.write("part", b"second")
    assert folder.read("part") == b"first" and folder.names() == {"part"}


def test_a_file_that_vanishes_while_its_folder_is_listed_does_no_harm():
    """Such as the temporary file of another run."""

    class Vanishing:
        failures = 2

        def get_file_info(self, _):
            self.failures -= 1
            if self.failures >= 0:
                raise FileNotFoundError(2, "Cannot get information for path 'out/.part.tmp'")
            return [SimpleNamespace(base_name="part"), SimpleNamespace(base_name=".hidden")]

    assert stores.Folder(Vanishing(), "out", "out").names() == {"part"}
    Vanishing.failures = 1000
    with pytest.raises(UserError, match=r"^out cannot be accessed"):
        stores.Folder(Vanishing(), "out", "out").names()
