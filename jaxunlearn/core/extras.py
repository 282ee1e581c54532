"""Libraries that an extra of the package brings: where one is missing, its extra is named."""

from types import TracebackType


class Extra:
    """Names the extra where an import inside fails.

        with Extra("report"):
            import altair

    A class, and no generator: type checkers then know that it lets no exception pass in silence, so
    that the names which are imported inside are bound after it.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises ModuleNotFoundError, with how to install it, where a module is missing."""
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(
                f"{error.name} is not installed: pip install 'jaxunlearn[{self._name}]'",
                name=error.name,
            ) from None
