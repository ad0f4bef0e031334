"""Rehearsal when a labelling host starts the training: of earlier sites, and of the host's cases in later trainings.

What is rehearsed are replay sets in ``models/replay``, generated slices. Those of the sites that the weights that ship
have learnt are drawn at the first training, from ``models/generator.pt``, while the bundle's model is that one: other
weights would be given images of sites that they never saw, and label them. Of the cases themselves nothing is kept but
hashes of their files, by which a set is left out while all its cases are here again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shared.diffusion import load_generator
from shared.distributed import from_first_rank
from shared.errors import InputError
from shared.files import read_json, save_json
from shared.hashes import hash_of_file
from shared.host_run import HostRun, is_handed_over
from shared.run_directory import RunDirectory

from .network import image_channels
from .replay import INDEX
from .strategies import FORGOTTEN

__all__ = ["CaseRehearsal"]

_CASES = "cases.json"
_NOT_COMPARED = {"replay_set#originals": "$None"}  # an expression: MONAI takes no notice of an option that is None


class CaseRehearsal:
    """The replay sets that a host's training rehearses, and the one that it leaves; folders change nothing.

    Args:
        host: of the run.
        options: ids of ``train.json`` that generator and segmenter share: what a slice is, device and seed.
        generator_options: more ids of ``train_diffusion.json``.
        replay_options: more ids of ``generate.json``; a ``count`` of 0 leaves no set.
        shipped_model: SHA-256 of the model file that has learnt what ``models/generator.pt`` draws; None: whatever the
            bundle's model is.
        held_out: the host's cases for validation, if any: a sample nearer to a case that is learnt than to them may be
            a copy.
    """

    def __init__(
        self,
        host: HostRun,
        options: Mapping[str, Any],
        generator_options: Mapping[str, Any],
        replay_options: Mapping[str, Any],
        shipped_model: str | None = None,
        held_out: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.host, self.options, self.shipped_model = host, dict(options), shipped_model
        self.generator_options, self.replay_options = dict(generator_options), dict(replay_options)
        self.held_out = list(held_out) if is_handed_over(held_out) else []  # else those of a site, not of the host

    @property
    def folder(self) -> Path:
        """Where the bundle's replay sets lie."""
        return self.host.bundle_root / "models" / "replay"

    def sets(self, given: Sequence[str | Path] | str | Path) -> Sequence[str | Path] | str | Path:
        """Return the replay sets of a run: those asked for; for a host's cases, the bundle's own of other cases.

        Args:
            given: folders asked for.
        """
        if self.host.cases is None or given:
            start = self.host.init_from
            if not given and start is not None and Path(start).is_file():
                # A run's folder says which sites it has learnt, and is refused; weights alone do not know.
                self.host.say(f"{start}: found no replay_sets, so nothing is replayed: {FORGOTTEN}")
            return given
        if self.replay_options.get("count") != 0:
            from_first_rank(partial(self._draw_shipped))
        here = [self._hashes()]
        found: list[Path] = []
        for index in sorted(self.folder.glob(f"*/{INDEX}"), reverse=True):
            path = index.with_name(_CASES)
            cases = set(read_json(path)) if path.is_file() else None
            # A set stands for its cases, unless they are here again or in a newer set.
            if read_json(index).get("complete") and not (cases and any(cases <= other for other in here)):
                found.insert(0, index.parent)
                here.append(cases or set())
        names = ", ".join(path.name for path in found)
        self.host.say(
            f"rehearsed from the bundle's generator: {names}"
            if found
            else f"{self.folder}: found no replay set of other cases, so nothing learnt before is rehearsed"
        )
        return found

    def remember(self, run_dir: str | Path) -> None:
        """Teach the generator a host's cases and leave a replay set of them; a failure is told and spoils nothing.

        Args:
            run_dir: of the segmenter's complete run; its weights label the set.
        """
        if self.host.cases is None or self.replay_options.get("count") == 0:
            return
        if dist.is_available() and dist.is_initialized():
            self.host.say("no replay set is made of these cases: the generator learns them on a single device only")
            return
        with self._told("no replay set is made of these cases"):
            self._generate(RunDirectory(run_dir, read_only=True).model)

    @contextmanager
    def _told(self, loss: str) -> Iterator[None]:
        """Tell what bad input costs instead of ending the training by it."""
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if cause is None:
                raise
            self.host.say(f"{loss}: {cause}")

    @property
    def _generator(self) -> Path:
        """The generator that comes with the bundle."""
        return self.host.bundle_root / "models" / "generator.pt"

    def _shipped_sites(self) -> list[str]:
        """Return what the generator that ships can draw; nothing if its images are not what the segmenter takes."""
        if not self._generator.is_file():
            return []
        size = self.options["spatial_size"]
        shape = (image_channels(self.options["channels"], self.options["slices"], len(size)), *size)
        # Weights are drawn before they are loaded: not from the training's random numbers.
        with self._told("the generator that ships is not used"), torch.random.fork_rng():
            return list(load_generator(self._generator, shape).sites)
        return []

    def _has_learnt_shipped(self) -> bool:
        """Whether the bundle's model has learnt the sites of the generator that ships; says so of weights put there."""
        model = self.host.model
        if not model.is_file() or not self._generator.is_file():
            return False
        renewed = model.with_name("model_previous.pt").is_file()  # by a training of a host
        if self.shipped_model is None:
            return not renewed
        if hash_of_file(model) == self.shipped_model:
            return True
        if not renewed:
            self.host.say(
                f"{model}: found other weights than those that {self._generator.name} ships with, so the sites that it "
                "draws are not rehearsed"
            )
        return False

    def _draw_shipped(self) -> bool:
        """Draw sets of the sites that the weights that ship have learnt, while these are the bundle's model."""
        sites = self._shipped_sites() if self._has_learnt_shipped() else []
        with self._told("not all of what the weights that ship have learnt is rehearsed"), torch.random.fork_rng():
            for site in sites:
                if not (self.folder / site / INDEX).is_file() or not read_json(self.folder / site / INDEX)["complete"]:
                    # Nothing real of these sites is at hand.
                    self._draw(self._generator, self.host.model, site, _NOT_COMPARED)
        return bool(sites)

    def _generate(self, model: Path) -> None:
        import monai.bundle

        configs, site, runs = self.host.bundle_root / "configs", self.host.task, self.host.bundle_root / "runs"
        earlier = [path for path in sorted(runs.glob("generator_*")) if RunDirectory(path, read_only=True).is_done()]
        # Only to start from: what it draws is this site.
        start = earlier[-1] if earlier else self._generator if self._shipped_sites() else None
        learning = {"run_dir": str(runs / f"generator_{site}"), "generator_from": None if start is None else str(start)}
        monai.bundle.run(
            run_id="training",
            config_file=str(configs / "train_diffusion.json"),
            **{**self._common(site), **learning, "train#dataset#data": self.host.cases, **self.generator_options},
        )
        self._draw(learning["run_dir"], model, site, self._originals())
        save_json(self.folder / site / _CASES, sorted(self._hashes()))
        self.host.say(f"{self.folder / site}: generated slices of these cases, for later trainings")

    def _originals(self) -> dict[str, Any]:
        """Return the ids of ``generate.json`` by which samples of the host's cases are compared with the cases."""
        if not self.held_out:
            self.host.say(
                "the samples that stand for these cases are not compared with them: that needs cases for validation"
            )
            return _NOT_COMPARED
        return {"real_images#training": self.host.cases, "real_images#held_out": self.held_out}

    def _draw(self, generator: str | Path | None, model: Path, site: str, originals: Mapping[str, Any]) -> None:
        """Write a site's replay set; ``originals`` says what its samples are compared with."""
        import monai.bundle

        configs = self.host.bundle_root / "configs"
        drawing = {"generator": str(generator), "model": str(model), "output_dir": str(self.folder / site)}
        # Neither picture nor assessment: the set alone, and the look for real images.
        steps = ["@replay_set", "$scripts.check_private(@private_dirs, @record)"]
        monai.bundle.run(
            run_id="generating",
            config_file=[str(configs / "train.json"), str(configs / "generate.json")],
            **{**self._common(site), **drawing, "generating": steps, **originals, **self.replay_options},
        )

    def _common(self, site: str) -> dict[str, Any]:
        return {"bundle_root": str(self.host.bundle_root), "task": site, **self.options}

    def _hashes(self) -> set[str]:
        return {hash_of_file(Path(item["image"])) for item in self.host.cases or ()}
