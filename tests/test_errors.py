"""What is said of exceptions, whoever has foreseen them."""

import errno

import pytest

from mapo.errors import MapoError, foreseen, memory_told, reason, spoken


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    for name in ("TQDM_MININTERVAL", "TORCH_LOGS", "PYTHONOPTIMIZE", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_an_exception_that_nobody_has_foreseen_is_called_a_fault_of_ours():
    assert spoken(ValueError("odd")).startswith("This is a fault of mapo: ValueError: odd. Please report it with ")


def test_a_file_is_named_as_it_will_be_called_and_not_as_it_is_while_it_is_written():
    told = foreseen(OSError(errno.ENOSPC, "x", "t/c/.latents-b.safetensors.14909.partial"))
    assert told.startswith("t/c/latents-b.safetensors: No space left")
    assert foreseen(OSError(errno.EACCES, "no", ".x.partial")) == ".x.partial: no."


def test_memory_that_the_system_refuses_is_no_fault_of_the_file_that_was_to_be_read():
    refused = OSError(errno.ENOMEM, "Cannot allocate memory", "a/folder")
    assert foreseen(refused).startswith("The memory ran out (")
    with pytest.raises(MapoError, match="^The memory ran out with 8 pairs at a time"), memory_told(8, noun="pair"):
        raise refused
    assert "gives this process no more threads" in spoken(RuntimeError("can't start new thread"))
    with pytest.raises(FileNotFoundError), memory_told(8):
        raise FileNotFoundError(errno.ENOENT, "none", "a/file")


def test_variables_that_change_libraries_are_named_as_a_reason(monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "abc")
    said = spoken(ValueError("could not convert string to float: 'abc'"))
    assert "This is perhaps a fault of mapo" in said and "TQDM_MININTERVAL. Unset them and try again." in said


def test_of_what_a_library_says_at_most_the_first_line_is_told_in_short():
    assert reason(RuntimeError("\nIt failed.\nSee the log.")) == "It failed"
    assert reason(ValueError("word " * 100 + "\nmore")) == "word " * 39 + "…"
    assert reason(KeyError("down")) == "KeyError: 'down'" and reason(ValueError()) == "ValueError"
    assert reason(PermissionError(13, "Permission denied", "/a/file")) == "Permission denied"
