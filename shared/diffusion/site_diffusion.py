"""The generator of replay images: one denoiser for all sites, and for each site a prompt that it learns.

What Xu et al. (arXiv 2406.18037, 2024) state in their abstract: a site-modulated diffusion model generates images with
site-specific learnable prompts, so that replayed images follow the distributions of previous sites. Everything else is
our choice: how a prompt enters the network (cross-attention), that the denoiser is frozen after the first site, how
labels come about, and all sizes and schedules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from ..errors import InputError, did_you_mean
from ..files import load_tensors, save_tensors
from ..hashes import hash_of_weights
from ..settings import differences
from .architecture import check_architecture, training_scheduler
from .modulation import insert_site_norms, modulate

__all__ = ["LATER_SITES", "SiteDiffusion", "read_generator"]

LATER_SITES = ("prompt", "film", "full")
_EXTRA, _FIRST_LAYER = "_extra_state", "denoiser.conv_in.conv.weight"
_STARTING_SCALE = 0.5  # of a first prompt's numbers; the denoiser learns along with it, so that little hangs on it


class SiteDiffusion(nn.Module):
    """A diffusion model of images of several sites, for MONAI's ``DiffusionInferer`` and schedulers.

    A site is K tokens, attended to at the levels with attention, and with ``conditioning="film"`` also a scale and a
    shift of the normalised features of every residual block. As nothing of one site takes part in the images of
    another, what is frozen cannot be forgotten. The state dict holds denoiser and sites; an entry of bytes names
    architecture and sites, so that :meth:`load` needs nothing but the file, and another architecture is refused.

    Args:
        image_size: *S, one number for all axes or one an axis.
        spatial_dims: 2 or 3.
        channels: of an image, whose intensities lie in [0, 1].
        label_channels: foreground classes generated along with the image (``labels: joint``); 0 for images alone.
        patch: pixels along an axis that the U-Net gets as channels of one; 2 makes it four times as fast in 2D
            (Hoogeboom et al., ICML 2023).
        features: channels of the U-Net's levels, multiples of ``norm_groups``; each level halves the size.
        attention: which levels attend to the prompt (and to themselves).
        blocks: residual blocks a level.
        head_channels: channels of an attention head; divides ``features`` at the levels with attention.
        norm_groups: of group normalisation.
        tokens: K, of a prompt.
        token_size: numbers of a token.
        conditioning: "prompt" or "film".
        pretended: sites made up while the first one is learned, see ``pretending``; 0 for none.
        timesteps: T, of the diffusion.
        schedule: of the noise, a name that MONAI's schedulers know; "cosine" fits any T.
        schedule_options: of the schedule; None takes MONAI's for "cosine", else betas from 0.0015 to 0.0205 at
            T = 1000 and in proportion more for fewer steps.
        prediction: "epsilon", the noise; "v_prediction" (Salimans & Ho, ICLR 2022), whose samples keep the mean
            brightness of the images after far fewer iterations; or "sample", the image. With patches take the last:
            a patch of noise has as many degrees of freedom as pixels, one of an image has few (Li & He, 2025).

    Raises:
        InputError: options that do not fit each other.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        spatial_dims: int = 2,
        channels: int = 1,
        label_channels: int = 0,
        patch: int = 1,
        features: Sequence[int] = (16, 32, 64, 64),
        attention: Sequence[bool] = (False, False, True, True),
        blocks: int = 1,
        head_channels: int = 32,
        norm_groups: int = 8,
        tokens: int = 8,
        token_size: int = 256,
        conditioning: str = "prompt",
        pretended: int = 24,
        timesteps: int = 1000,
        schedule: str = "scaled_linear_beta",
        schedule_options: Mapping[str, float] | None = None,
        prediction: str = "v_prediction",
    ) -> None:
        super().__init__()
        if schedule_options is None and schedule != "cosine":
            schedule_options = {"beta_start": 1.5 / timesteps, "beta_end": 20.5 / timesteps}
        self.architecture: dict[str, Any] = {
            "image_size": list(ensure_tuple_rep(image_size, spatial_dims)),
            "spatial_dims": spatial_dims,
            "channels": channels,
            "label_channels": label_channels,
            "patch": patch,
            "features": list(features),
            "attention": list(attention),
            "blocks": blocks,
            "head_channels": head_channels,
            "norm_groups": norm_groups,
            "tokens": tokens,
            "token_size": token_size,
            "conditioning": conditioning,
            "pretended": pretended,
            "timesteps": timesteps,
            "schedule": schedule,
            "schedule_options": dict(schedule_options or {}),
            "prediction": prediction,
        }
        check_architecture(self.architecture)
        self.scheduler = training_scheduler(self.architecture)
        image_channels = (channels + label_channels) * patch**spatial_dims
        self.denoiser = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=image_channels,
            out_channels=image_channels,
            channels=tuple(features),
            attention_levels=tuple(attention),
            num_res_blocks=blocks,
            num_head_channels=head_channels,
            norm_num_groups=norm_groups,
            with_conditioning=True,
            cross_attention_dim=token_size,
            use_flash_attention=True,
        )
        self._film_size = insert_site_norms(self.denoiser) if conditioning == "film" else 0
        self.prompts, self.films = nn.ParameterList(), nn.ParameterList()
        self.pretended = nn.Parameter(_STARTING_SCALE * torch.randn(pretended, tokens, token_size))
        self.pretended_films = nn.Parameter(torch.zeros(pretended if self._film_size else 0, self._film_size))
        self.sites: dict[str, dict[str, Any]] = {}  # what is known of each, in the order of their prompts
        self.origin: str | None = None  # hash of the weights that this generator was loaded from

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Return what the noisy images hide: their noise, the velocity, or the clean images.

        Args:
            x: (B, channels + label_channels, *S).
            timesteps: (B,) or (1,).
            context: (B,) numbers of the sites, see :meth:`number`; called so by MONAI's inferer. Those of pretended
                sites are -1, -2 ...
        """
        dims, patch = self.architecture["spatial_dims"], self.architecture["patch"]
        if self._film_size:
            modulate(self.denoiser, _table(self.films, self.pretended_films)[context])
        try:
            prompts = _table(self.prompts, self.pretended)[context]
            return pixelshuffle(self.denoiser(pixelunshuffle(x, dims, patch), timesteps, prompts), dims, patch)
        finally:
            if self._film_size:
                modulate(self.denoiser, None)

    # -- sites ---------------------------------------------------------------------------------------------------------

    def number(self, site: str) -> int:
        """Return a site's number, for ``context``.

        Raises:
            InputError: the generator does not know it.
        """
        if site not in self.sites:
            known = ", ".join(self.sites) or "none"
            raise InputError(f"found site {site!r}{did_you_mean(site, self.sites)}, expected one of: {known}")
        return list(self.sites).index(site)

    def add_site(self, name: str, known: Mapping[str, Any] | None = None) -> None:
        """Add a site; a first one begins at random (from torch's seed), others in the mean of all, pretended or not.

        Args:
            name: new to this generator.
            known: plain containers that travel with the weights: the site's statistics.

        Raises:
            InputError: the site is there already.
        """
        if not name or name in self.sites:
            raise InputError(f"found site {name!r}, expected a name other than: {', '.join(self.sites) or 'empty'}")
        device = next(self.denoiser.parameters()).device
        a, first = self.architecture, not self.sites
        prompt = _STARTING_SCALE * torch.randn(a["tokens"], a["token_size"])
        prompt = prompt if first else _table(self.prompts, self.pretended).mean(0)
        self.prompts.append(nn.Parameter(prompt.detach().to(device)))
        if self._film_size:
            film = torch.zeros(self._film_size) if first else _table(self.films, self.pretended_films).mean(0)
            self.films.append(nn.Parameter(film.detach().to(device)))
        self.sites[name] = dict(known or {})

    def learn_only(self, site: str, later_sites: str = "prompt") -> None:
        """Freeze what a site's training leaves as it is; a first site trains everything.

        Args:
            site: known already.
            later_sites: what learns at a later site: its "prompt" alone, its prompt and "film", or with "full" the
                denoiser as well, which changes the images of all earlier sites.

        Raises:
            InputError: an unknown site or choice; or "film" without such conditioning.
        """
        if later_sites not in LATER_SITES:
            raise InputError(f"found later_sites {later_sites!r}, expected one of: {', '.join(LATER_SITES)}")
        if later_sites == "film" and not self._film_size:
            raise InputError("found later_sites film with conditioning prompt, expected conditioning film")
        number = self.number(site)
        everything = number == 0 and len(self.sites) == 1
        self.denoiser.requires_grad_(everything or later_sites == "full")
        self.pretended.requires_grad_(everything)
        # Without modulation it is empty and takes part in no pass: several processes would wait for its gradient.
        self.pretended_films.requires_grad_(everything and self._film_size > 0)
        for group, learns in ((self.prompts, True), (self.films, everything or later_sites != "prompt")):
            for index, parameter in enumerate(group):
                parameter.requires_grad_(learns and index == number)

    def frozen_hash(self) -> str:
        """Return the hash of all frozen parameters."""
        return hash_of_weights({name: p for name, p in self.named_parameters() if not p.requires_grad})

    # -- files ---------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return what decides a training of it, in plain words: architecture, sites, what is frozen, where from."""
        frozen = {name: p.numel() for name, p in self.named_parameters() if not p.requires_grad}
        return {
            **self.architecture,
            "sites": list(self.sites),
            "frozen": f"{len(frozen)} tensors, {self.frozen_hash()[:16]}" if any(frozen.values()) else "nothing",
            "origin": self.origin,
        }

    def get_extra_state(self) -> Tensor:
        """Return architecture and sites as bytes: an entry of the state dict, which holds tensors alone."""
        text = json.dumps({"architecture": self.architecture, "sites": self.sites})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the sites of a state dict that is being loaded, before its prompts are.

        Raises:
            InputError: another architecture, or sites other than those that are here.
        """
        found = _described(state)
        changed = differences(found["architecture"], self.architecture)
        if changed:
            raise InputError(f"found a generator of another kind ({changed}); expected the architecture asked for")
        old, new = list(self.sites), list(found["sites"])
        if old != new[: len(old)]:
            raise InputError(f"found a generator of the sites {new}, expected one that begins with {old}")
        for name in new[len(old) :]:
            self.add_site(name)
        self.sites = found["sites"]

    def load_file(self, path: str | Path) -> None:
        """Load what :meth:`save` or a run wrote (a file, or the run_dir); sites that are not here yet are added.

        Raises:
            InputError: unreadable, or no generator of this architecture: of another image size, say.
        """
        _, state = read_generator(path)
        try:
            self.load_state_dict(state)
        except InputError as error:
            raise InputError(f"{_file(path)}: {error}") from error
        self.origin = hash_of_weights(state)

    def save(self, path: str | Path) -> None:
        """Write the generator in one file, atomically."""
        save_tensors(path, self.state_dict())


def _table(sites: nn.ParameterList, pretended: Tensor) -> Tensor:
    """Return a row for each site from the front, and for each pretended one from the end."""
    return torch.cat([torch.stack(list(sites)), pretended.flip(0)])


def _described(state: Tensor) -> dict[str, Any]:
    return json.loads(state.cpu().numpy().tobytes())


def _file(path: str | Path) -> Path:
    return Path(path) / "model.pt" if Path(path).is_dir() else Path(path)


def read_generator(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a generator's architecture and its state dict.

    Args:
        path: a file, or the run_dir of a generator, whose ``model.pt`` it is.

    Raises:
        InputError: unreadable, or no generator.
    """
    path = _file(path)
    state = load_tensors(path)
    if not isinstance(state, dict) or not {_EXTRA, _FIRST_LAYER} <= set(state):
        raise InputError(f"{path}: holds no generator; expected the model.pt of a generator's run")
    return _described(state[_EXTRA])["architecture"], state
