"""What a bundle's steps owe the host that runs them: an error that its user gets to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InputError

__all__ = ["told_to_host"]


@contextmanager
def told_to_host() -> Iterator[None]:
    """Within a MONAI Label server, turn InputError into an HTTP error 400 that holds its sentence.

    Any other exception reaches the client as "Internal Server Error" and nothing else.
    """
    try:
        yield
    except InputError as error:
        if "monailabel" not in sys.modules:
            raise
        from fastapi import HTTPException

        raise HTTPException(status_code=400, detail=str(error)) from error
