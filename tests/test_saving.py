"""Files that are written whole or not at all."""

import pytest
from safetensors import safe_open

from minimodel.saving import OTHER_NETWORKS, WEIGHTS, whole_file, whole_folder


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    for content in ("one", "two"):
        with whole_file(path) as unfinished:
            unfinished.write_text(content)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        unfinished.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match=r"No space left.*new/file"), whole_file(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"No space left.*new/file'$"), whole_file(path) as unfinished:
        raise OSError(28, "No space left on device", str(unfinished))
    for place, message in ((path.parent, "is a directory"), (path / "below", "new/file/below: can't be written")):
        with pytest.raises(ValueError, match=message), whole_file(place):
            pytest.fail("nothing should be begun that can't be kept")
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


def test_the_names_of_shipped_files_tell_which_hold_animation_models():
    paths = sorted(WEIGHTS.glob("*.safetensors"))
    assert len(paths) >= 10
    for path in paths:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        holds_another = metadata is None or "kind" in metadata
        assert holds_another == path.stem.startswith(OTHER_NETWORKS), path.name


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as unfinished:
        (unfinished / "file").write_text("half of")
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())
    unfinished.mkdir()
    (unfinished / "other").touch()  # of a run that was killed
    with whole_folder(path) as unfinished:
        (unfinished / "file").write_text("whole")
        assert not path.exists()
    assert [found.name for found in path.parent.rglob("*")] == ["folder", "file"]
    for place, message in ((path, "is there already"), (path / "file" / "below", "file/below: can't be written")):
        with pytest.raises(ValueError, match=message), whole_folder(place):
            pytest.fail("nothing should be begun that can't be kept")
