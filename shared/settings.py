"""Settings as flat tables: what a run or a chain was begun with, compared with what is asked for now."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["differences", "digest", "flatten"]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": "1"}``."""
    rows: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            rows.update(flatten(value, f"{prefix}{key}."))
        else:
            rows[f"{prefix}{key}"] = str(value)
    return rows


def digest(settings: dict[str, Any]) -> str:
    """Return a hash of settings."""
    return hashlib.sha256(json.dumps(flatten(settings), sort_keys=True).encode()).hexdigest()


def differences(found: dict[str, Any], asked: dict[str, Any], limit: int = 6) -> str:
    """Return the settings that differ, in words; empty where none does.

    Args:
        found: as read from a JSON file.
        asked: as it would be written to one: tuples count as the lists that come back.
        limit: most settings listed.
    """
    old, new = flatten(found), flatten(json.loads(json.dumps(asked)))
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    listed = [f"{k}: found {old.get(k)}, asked for {new.get(k)}" for k in changed[:limit]]
    if len(changed) > limit:
        listed.append(f"and {len(changed) - limit} more")
    return "; ".join(listed)
