"""``python -m tools COMMAND``: apply, chain, compare, package, register, report; ``--help`` after one tells more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from tqdm import tqdm

from shared.errors import InputError
from shared.files import read_json

from .apply import apply_transforms, check_frame, described, file_flags, listed_transforms
from .command_line import check_foreign_flags, plain_arguments, whole_number
from .flags import check_flags, json_words
from .register import register, register_flags

# What trains or reports is imported by the command that needs it: MONAI's engines take longer to load than a small pair
# to register.
OUTPUT = Path(__file__).resolve().parents[1] / "output"


class _Progress:
    """One line over the whole work, with time left."""

    def __init__(self) -> None:
        form = "{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}] {desc}"
        # A log file wants a line now and then, a terminal a moving clock.
        self.pause = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True)
        self.begun, self.shown = False, 0.0

    def __call__(self, share: float, text: str) -> None:
        if not self.begun:
            # What an earlier call finished must not count as this one's speed.
            self.bar.initial, self.begun = share, True
            self.bar.reset(total=1.0)
        self.bar.n = share
        self.bar.set_description_str(text, refresh=False)
        if time.monotonic() - self.shown >= self.pause or share >= 1.0:
            self.shown = time.monotonic()
            self.bar.refresh()


def _listed(value: Any) -> list[str]:
    names = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    return [str(name).strip() for name in names]


def chain(
    plan: str = "samcl_embedded",
    out: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    **changes: Any,
) -> None:
    """Learn task after task, look at all tasks after each, and write a report.

    Killed at any moment, the same command goes on where it stopped and ends with the same results.

    Args:
        plan: JSON file, or the name of one in tools/plans; by default the four embedded registration tasks.
        out: folder of the chain; by default output/<plan>_<strategy>_seed<k> in the collection.
        seed: of weights, order and memory; by default the plan's first.
        threads: CPU threads; by default all.
        changes: keys of the plan (--phases "{replay: {count: 50}}", --tasks "[a,b]", --unseen "[c]", --strategy er,
            --split val, --configs smoke, --dataset_dir DIR) or options of the bundle's train.json (--iterations 100,
            --strategy#rho 0.5).
    """
    from .chain import Chain
    from .plan import load_plan
    from .report import write_report

    check_foreign_flags(changes, chain, compare)
    seed, threads = whole_number("seed", seed, 0), whole_number("threads", threads, 1)
    checked = load_plan(plan, **json_words(changes))
    number = checked.seeds[0] if seed is None else seed
    folder = Path(out) if out else OUTPUT / f"{checked.name}_{checked.strategy}_seed{number}"
    summary = Chain(checked, folder, number, threads, _Progress()).run()
    page = write_report([folder], folder / "report.html")
    print(f"\n{_outcome(summary['metrics'])}\nresults in {folder}, report: {page}")


def _outcome(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a line on the first metric with a final average: Dice, or what there is in its place."""
    from shared.metrics import METRICS

    found = ((name, m) for name, m in metrics.items() if m.get("final_average") is not None)
    name, measured = next(found, ("no scores", {}))
    kept = {k: measured.get(k) for k in ("final_average", "backward_transfer", "forgetting", "unseen_average")}
    values = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in kept.items() if v is not None)
    return f"{METRICS[name][0]}: {values}" if values else name


def compare(
    plan: str = "samcl_embedded",
    strategies: Sequence[str] = ("sequential", "joint", "er", "mer", "ewc", "lwf", "gpm", "samcl"),
    seeds: int | Sequence[int] | None = None,
    match: str = "passes",
    out: str | None = None,
    jobs: int = 1,
    **changes: Any,
) -> None:
    """Run several strategies on the same tasks and budget: one table (Markdown, CSV), one report.

    Args:
        plan: JSON file, or the name of one in tools/plans; its own strategy sets the budget.
        strategies: of the bundle, e.g. "[sequential,er,samcl]".
        seeds: how many, or which ("[3,4]"); by default the plan's.
        match: "passes" lets every strategy send as many samples forward, "iterations" gives as many iterations.
        out: folder; by default output/<plan>_compare in the collection.
        jobs: chains side by side, sharing the CPU's cores.
        changes: as for chain.
    """
    from .compare import budget_notes, caption, write_tables
    from .compare import compare as run_comparison
    from .plan import load_plan
    from .report import write_report

    check_foreign_flags(changes, compare, chain)
    whole_number("jobs", jobs, 1)
    checked = load_plan(plan, seeds=seeds, **json_words(changes))
    folder = Path(out) if out else OUTPUT / f"{checked.name}_compare"
    runs = run_comparison(checked, _listed(strategies), checked.seeds, folder, match, jobs, _Progress())
    print("\n" + write_tables(runs, folder, caption(checked, match), budget_notes(checked, runs, match)))
    page = write_report([run.folder for run in runs], folder / "report.html")
    print(f"results in {folder}, report: {page}")


def report(*folders: str, out: str | None = None) -> None:
    """Write the report of one chain, or of several side by side.

    Args:
        folders: of chains.
        out: HTML file; by default report.html in the first folder.
    """
    from .report import write_report

    if not folders:
        raise InputError("found no folder, expected: python -m tools report DIR...")
    page = write_report(list(folders), out or Path(folders[0]) / "report.html")
    print(f"report: {page}")


def apply(
    *,
    transform: str | Sequence[str],
    reference: str,
    out: str,
    input: str | None = None,  # noqa: A002
    interpolation: str = "linear",
    inverse: bool = False,
    onto: str | None = None,
    frame: int | None = None,
    format: str = "",  # noqa: A002
) -> None:
    """Apply saved transforms to an image, a label map or points: composed first, interpolated once.

    Images and points go opposite ways. A registration pulls the moving image onto the fixed grid (--reference FIXED)
    and carries points of the FIXED image into moving space; a moving landmark reaches the fixed image with --inverse
    --reference MOVING. Without --input, the composed transform is written to --out: so formats are converted.

    Args:
        transform: ITK/ANTs .h5 .mat .txt .tfm, displacement .nii.gz .nrrd .mha, NiftyReg .nii.gz .txt, Learn2Reg .npz.
            Several as --transform A --transform B or "[A,B]", in the order of antsApplyTransforms, where the last one
            acts first on the image. "[A,1]" inverts A.
        reference: image whose grid the result gets, or that the points lie in; NIfTI, NRRD, MHA, a DICOM folder.
        out: result; the suffix chooses the format.
        input: image, label map, DICOM folder, or points: .csv without header (voxels), .csv with x,y,z (LPS mm),
            .pts (elastix), .fcsv (3D Slicer).
        interpolation: linear, nearest or label (smooth borders, no new labels).
        inverse: invert the whole chain; tells by how many mm the inverse is off.
        onto: for points in voxels and Learn2Reg fields: the image at the other end, whose voxels the result counts.
        frame: of an input that holds several, from 0.
        format: of a transform written: itk, niftyreg or learn2reg; by default by the suffix.
    """
    check_frame(frame)
    chain = listed_transforms(transform)
    words = str(interpolation), inverse, onto, frame, str(format)
    print(described(apply_transforms(chain, reference, out, input, *words)))


def package(
    bundle: str | None = None,
    out: str = "dist",
    version: str | None = None,
    allow_dirty: bool = False,
    verify: str | None = None,
    schema: str | None = None,
    large_files_url: str | None = None,
    push: str | None = None,
    repo: str | None = None,
    yes: bool = False,
) -> None:
    """Pack a bundle into one zip that runs without the collection, try such a zip, or hand it on.

    Args:
        bundle: name of a bundle, or all.
        out: folder of the zips.
        version: expected one; by default the metadata's.
        allow_dirty: pack files that are not committed.
        verify: a zip, tried in an empty folder: metadata, shapes, TorchScript, a short training, inference.
        schema: the zoo's metadata schema as a file; by default the one that the metadata names is fetched.
        large_files_url: folder on the web where files of more than 25 MB will be found; they are written beside the
            zip, whose large_files.yml names them. With --push the place itself.
        push: github or hf: show the command that uploads the new zip there.
        repo: OWNER/NAME, the repository to upload to; on hf, one a bundle.
        yes: run that command.
    """
    from .package import bundle_names, check_bundle, digest, pack
    from .package_check import check_package
    from .package_push import push as push_package

    if (bundle is None) == (verify is None):
        raise InputError("found neither or both of a bundle and --verify, expected one of them")
    if verify is not None and push is not None:
        raise InputError("found --push and --verify, expected one of them: --push takes a bundle")
    if verify is not None:
        record = check_package(verify, schema, lambda step: print(f"{step} ...", flush=True))
        print(f"{verify}: {record['bundle']} {record['version']} of commit {record['commit'][:7]} runs on its own")
        return
    names = bundle_names() if bundle == "all" else [str(bundle)]
    for name in names:
        check_bundle(name)
    if len(names) > 1 and push == "hf":
        raise InputError(
            "found --push hf for all bundles, expected one of them: on Hugging Face each has a repository of its own"
        )
    for name in names:
        number = None if version is None else str(version)
        path = pack(name, out, number, allow_dirty, large_files_url=_large_files_url(name, large_files_url, push, repo))
        print(f"{path}  sha256 {digest(path.read_bytes())}")
        if push is not None:
            push_package(path, push, repo, yes)


def _large_files_url(bundle: str, url: str | None, place: str | None, repo: str | None) -> str | None:
    """Return where a package's large files will be found: as asked for, else where it is pushed to."""
    from .package_push import release_url
    from .plan import ROOT

    if url is None and place is not None and repo:
        number = read_json(ROOT / "bundles" / bundle / "configs" / "metadata.json").get("version")
        github = place == "github"
        return release_url(repo, f"{bundle}_v{number}") if github else f"https://huggingface.co/{repo}/resolve/{number}"
    return url


COMMANDS: dict[str, Callable[..., None]] = {
    "apply": apply,
    "chain": chain,
    "compare": compare,
    "package": package,
    "register": register,
    "report": report,
}


# Commands whose flags are checked before any work: what is left over would be told after it.
CHECKED: dict[str, tuple[Callable[..., None], Callable[[list[str]], list[str]]]] = {
    "apply": (apply, file_flags),
    "register": (register, register_flags),
}
# What is interrupted there starts anew; the others go on where they were.
ANEW = ("apply", "package", "register", "report")


def main() -> None:
    """Run a command; bad input and unusable options end with their message alone and exit code 1."""
    arguments = sys.argv[1:]
    if not {"--help", "-h"}.isdisjoint(arguments):
        # Else it would be one more option of the training config.
        arguments = [*arguments[:1], "--", "--help"] if arguments[0] in COMMANDS else ["--help"]
    try:
        if arguments and arguments[0] in CHECKED and "--help" not in arguments:
            command, literal = CHECKED[arguments[0]]
            arguments = [arguments[0], *literal(arguments[1:])]
            check_flags(arguments[1:], command)
        elif arguments and arguments[0] in COMMANDS and "--help" not in arguments:
            arguments = [arguments[0], *plain_arguments(arguments[1:], COMMANDS[arguments[0]])]
        fire.Fire(COMMANDS, arguments, name="python -m tools")
    except InputError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(1)
    except fire.core.FireExit as end:
        # Its 2 for unusable arguments is what `register --strict` says of a failed registration.
        sys.exit(1 if end.code else 0)
    except KeyboardInterrupt:
        again = "starts anew" if arguments and arguments[0] in ANEW else "goes on from here"
        sys.stderr.write(f"\nstopped; the same command {again}\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
