"""The generated images of a report: how near they are to the real ones, and whether they are copies of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shared.files import read_json

from .report_chains import Chain, number
from .report_figures import embedded
from .report_groups import Group
from .report_tables import plain_table, tabs
from .report_words import amount, count_text, identifier

__all__ = ["generated"]

# Heading -> (part of assessment.json, key, digits)
COLUMNS = {
    "FID": ("quality", "fid", 2),
    "FID of real halves": ("quality", "fid_of_real", 2),
    "likeness of two samples": ("quality", "ms_ssim", 2),
    "of two real images": ("quality", "ms_ssim_of_real", 2),
    "distance ratio, median": ("leakage", "median_ratio", 2),
    "lowest": ("leakage", "lowest_ratio", 2),
    "nearer to training": ("leakage", "nearer_to_training", 2),
    "expected": ("leakage", "expected_nearer", 2),
}


def _assessments(chain: Chain) -> dict[str, Mapping[str, Any]]:
    """Return stage -> what was found about its replay set."""
    paths = {stage: chain.folder / stage / "replay" / "assessment.json" for stage in chain.done}
    return {stage: read_json(path) for stage, path in paths.items() if path.is_file()}


def _row(chain: Chain, stage: str, found: Mapping[str, Any]) -> list[str]:
    cells = [identifier(chain.label(chain.learns(stage)[0]))]
    cells += [count_text(number(found["leakage"].get("samples"))), count_text(number(found.get("drawn")))]
    for part, key, digits in COLUMNS.values():
        cells.append(amount(number(found[part].get(key)), digits))
    return [*cells, count_text(number(found["leakage"].get("suspects")))]


def generated(groups: Sequence[Group]) -> str:
    """Return table and sheets of the replay sets; nothing where no chain has any. Of several seeds the first counts."""
    cards = []
    for place, group in enumerate(groups):
        chain = group.scored[0]
        found = _assessments(chain)
        if not found:
            continue
        head = ["", "kept", "drawn", *COLUMNS, "suspects"]
        table = plain_table(head, [_row(chain, stage, entry) for stage, entry in found.items()])
        sheets = {stage: chain.folder / stage / "replay_sheet.png" for stage in found}
        panels = [
            (
                chain.label(chain.learns(stage)[0]),
                f'<div class="film">{embedded(path, f"generated images, {stage}")}</div>',
            )
            for stage, path in sheets.items()
            if path.is_file()
        ]
        pictures = tabs(f"sheets-{place}", panels, print_all=False) if panels else ""
        cards.append(f'<div class="card"><h3>{escape(group.label or "Replay sets")}</h3>{table}{pictures}</div>')
    if not cards:
        return ""
    remark = (
        "Images that stand for the patients of earlier tasks. The FID compares them with test images; 0 is alike. The "
        "distance ratio is that of the nearest training image to the nearest test image: near 0 for a copy; suspects "
        "lie below 0.5. The test finds copies; it does not prove that there are none."
    )
    return f'<p class="soft">{remark}</p>{"".join(cards)}'
