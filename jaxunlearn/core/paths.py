"""What users name and write: paths with `~`, and text files with or without a byte-order mark."""

from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Returns a path that a user gave, with `~` and `~name` replaced by the home folders.

    Raises:
      FileNotFoundError: nobody of this name has a home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{path}: there is no such home folder") from error


def check_folder(path: Path) -> None:
    """Checks that a path is that of a folder, or free for one.

    Raises:
      ValueError: it is a file, or a link that leads nowhere.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link that leads nowhere; --out must name a folder")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file; --out must name a folder")


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8; a byte-order mark at its beginning is left out.

    Raises:
      OSError: it cannot be read.
      ValueError: it is in another encoding; names the file and the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 text ({error.reason}, byte 0x{content[error.start]:02x});"
            " save it as UTF-8"
        ) from error
