"""What a request may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, did_you_mean
from ..register import INITS
from .files import ALL

__all__ = ["FUSIONS", "PropagationOptions"]

FUSIONS = ("similarity", "majority")


@dataclass(frozen=True)
class PropagationOptions:
    """How labels are propagated.

    Attributes:
        atlases: "all" or names, separated by commas.
        fusion: of several atlases: "similarity" gives each a vote as large as its image is alike around a voxel,
            "majority" gives each the same.
        optimise: iterations a level that go on from the network's field; 0 leaves it as it is.
        init: alignment before the network: "none" keeps the headers' frame; see :func:`shared.register.register`.
        atlas_image: files on the server that take the place of the bundle's atlases.
        atlas_label: as many.

    Raises:
        InputError: an option that cannot be.
    """

    atlases: str = ALL
    fusion: str = FUSIONS[0]
    optimise: int = 0
    init: str = "none"
    atlas_image: tuple[str, ...] = ()
    atlas_label: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("fusion", FUSIONS), ("init", INITS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"found {name} {value!r}{did_you_mean(str(value), known)}, expected one of {', '.join(known)}"
                )

    @classmethod
    def of_request(cls, data: Mapping[str, Any]) -> PropagationOptions:
        """Return the options that a request holds; where a host hands over a list of choices, the first one."""
        chosen = {name: _first(data[name]) for name in ("atlases", "fusion", "init") if _given(data.get(name))}
        steps = _first(data.get("optimise", 0))
        try:
            optimise = int(steps)
        except (TypeError, ValueError):
            optimise = -1
        if optimise < 0:
            raise InputError(f"found optimise {steps!r}, expected a number of steps, 0 or more")
        images, labels = (_listed(data.get(name)) for name in ("atlas_image", "atlas_label"))
        return cls(**chosen, optimise=optimise, atlas_image=images, atlas_label=labels)


def _given(value: Any) -> bool:
    return value not in (None, "", [], ())


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _listed(value: Any) -> tuple[str, ...]:
    if not _given(value):
        return ()
    return tuple(str(v) for v in value) if isinstance(value, list | tuple) else (str(value),)
