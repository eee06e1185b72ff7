"""Files and folders appear whole, or not at all."""

import os

import pytest

from ssd_ops.tinyssd.files import new_folder, replace_file


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    replace_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    replace_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [False, True])
def test_the_error_names_the_file_and_says_what_is_left(tmp_path, monkeypatch, there):
    path = tmp_path / "file"
    if there:
        replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        replace_file(path, b"new")
    left = "what was there before is whole" if there else "nothing of it is left"
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert caught.value.strerror.startswith("No space left on device; it cannot be written")
    assert caught.value.strerror.endswith(left) and path.exists() == there


def test_what_a_kill_left_is_written_over(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(type(path), "unlink", lambda *_, **__: None)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"half")
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    replace_file(path, b"whole")
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_at_the_end_of_the_block(tmp_path, there):
    target = tmp_path / "a" / "b"
    if there:
        target.mkdir(parents=True)
    with new_folder(target) as folder:
        (folder / "inside").write_text("kept")
        folder.with_name("beside").write_text("removed")
        assert not (target / "inside").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (target / "inside").read_text() == "kept" and os.listdir(target) == ["inside"]
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "set"):
        pytest.fail("let in")
    assert caught.value.filename == str(tmp_path / "set")


def test_a_disk_that_is_full_in_the_block_names_the_folder(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "set"):
        full()
    assert caught.value.filename == str(tmp_path / "set") and os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError) as caught, new_folder(tmp_path / "set"):
        (tmp_path / "none").read_text()
    assert caught.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "a" / "b") as folder:
        (folder / "inside").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for target in (tmp_path, tmp_path / "mine"):
        message = "folder must not exist or be empty, got "
        with pytest.raises(FileExistsError, match=message), new_folder(target):
            pytest.fail("let in")
    assert os.listdir(tmp_path) == ["mine"] and (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_is_filled_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "set"
    with pytest.raises(OSError), new_folder(target):
        target.mkdir()
        (target / "mine").write_text("mine")
    assert os.listdir(tmp_path) == ["set"] and os.listdir(target) == ["mine"]
