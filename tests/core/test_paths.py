"""Paths that users give, and the text of their files."""

import pytest

from jaxunlearn.core.paths import read_text, user_path


def test_a_home_folder_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/data") == tmp_path / "data"
    assert str(user_path("a/~b")) == "a/~b" and str(user_path("owner/name")) == "owner/name"
    with pytest.raises(FileNotFoundError, match=r"^~nobody-here/x: there is no such home folder"):
        user_path("~nobody-here/x")


def test_a_byte_order_mark_is_left_out(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\n")
    assert read_text(file) == "naïve\r\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_another_encoding_is_named_with_its_line(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_bytes("one\ntwo\nna\xefve\n".encode(encoding))
    line = 1 if encoding == "utf-16" else 3
    with pytest.raises(ValueError, match=rf"a\.txt:{line}: not UTF-8 text .* save it as UTF-8"):
        read_text(file)
