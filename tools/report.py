"""The report of a chain, or of several side by side: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from shared.files import atomic_write

from .report_chains import Chain, find_chains, read_chain
from .report_compare import best_first, comparison, comparison_lead
from .report_generated import generated
from .report_groups import Group, group_chains, splits_of
from .report_results import lead_metric, results, single_lead
from .report_scores import cases, matrices
from .report_sections import pictures, settings, training
from .report_words import Metric, is_synthetic

__all__ = ["read_chain", "write_report"]

TEMPLATE = Path(__file__).with_name("report_page.html")


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report of one chain, or of several for comparison.

    Args:
        folders: of chains, finished or not, or folders of such (``COMPARE/<strategy>/seed<k>/``).
        out: HTML file.

    Returns:
        ``out``.

    Raises:
        InputError: a folder that holds no chain, a malformed file in it, or ``out`` cannot be written.
    """
    chains = [read_chain(folder) for folder in find_chains(folders)]
    metric = lead_metric(chains)
    groups = best_first(group_chains(chains), metric)
    # Those without a score come last, so that the others keep their colours.
    begun = [group for group in groups if any(chain.done for chain in group.chains)]
    single = len(chains) == 1
    sections = [
        ("results", "Results", results(chains[0], metric) if single else comparison(groups, metric)),
        ("matrices", "What was learnt, what was kept", matrices(begun)),
        ("cases", "Single cases", cases(begun)),
        ("generated", "Generated images", generated(begun)),
        ("training", "Training", training(groups)),
        ("pictures", "Pictures", pictures(groups)),
        ("settings", "Settings", settings(groups)),
    ]
    shown = [entry for entry in sections if entry[2]]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(_title(chains, groups)),
        eyebrow=escape(_eyebrow(chains)),
        lead=_lead(chains, groups, metric),
        links="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown),
        sections="".join(
            f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in shown
        ),
        footer=_footer(chains),
    )
    atomic_write(out, lambda stream: stream.write(page.encode()))
    return Path(out)


def _title(chains: Sequence[Chain], groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(group.chains[0].settings["name"] for group in groups))
    if len(chains) == 1:
        return f"{names[0]}"
    what = f"{len(groups)} strategies" if len(groups) > 1 else f"{len(chains)} seeds"
    return f"{names[0]}: {what} side by side" if len(names) == 1 else f"{what} side by side"


def _eyebrow(chains: Sequence[Chain]) -> str:
    first = chains[0].settings
    bundles = ", ".join(dict.fromkeys(chain.settings["bundle"] for chain in chains))
    what = f"strategy {first['strategy']}, seed {first['seed']}" if len(chains) == 1 else f"{len(chains)} chains"
    subject = "registration" if all(chain.registers for chain in chains) else "segmentation"
    parts = [f"Continual {subject} report", f"bundle {bundles}", what]
    if splits := splits_of(chains):
        cases = "pairs" if chains[0].registers else "images"
        parts.append(f"scored on the {' or the '.join(splits)} {cases}")
    return " \N{MIDDLE DOT} ".join(parts)


def _lead(chains: Sequence[Chain], groups: Sequence[Group], metric: Metric) -> str:
    """Return the outcome in words, and what a reader must know before believing it."""
    single = len(chains) == 1
    parts = []
    if text := single_lead(chains[0], metric) if single else comparison_lead(groups, metric):
        parts.append(f'<p class="lead">{escape(text)}</p>')
    tasks = list(dict.fromkeys(task for chain in chains for task in chain.columns))
    if computed := [task for task in tasks if is_synthetic(task)]:
        share = "All data is" if len(computed) == len(tasks) else f"Of the tasks, {', '.join(computed)} are"
        parts.append(
            f'<p class="note">{escape(share)} <b>synthetic</b>: computed images of no real person. The numbers '
            "compare methods; they say nothing about patients.</p>"
        )
    for chain in chains:
        if not chain.is_finished:
            who = "This chain" if single else f"{chain.settings['strategy']}, seed {chain.settings['seed']}"
            means = "" if single else " Means leave it out wherever another seed is finished."
            count = f"{len(chain.done)} of {len(chain.stages)} stages are done"
            parts.append(
                f'<p class="note">{escape(who)} is <b>not finished</b>: {count}; the page shows these.{means}</p>'
            )
    return "".join(parts)


def _footer(chains: Sequence[Chain]) -> str:
    commits = dict.fromkeys(commit for chain in chains for commit in chain.versions.get("commit", []))
    made = f"; made with commit {escape(', '.join(filter(None, commits)))}" if any(commits) else ""
    return (
        f"Written by <code>python -m tools report</code>{made}. This file is complete in itself: nothing is loaded "
        "from elsewhere."
    )
