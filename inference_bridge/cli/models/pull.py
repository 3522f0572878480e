# SPDX-License-Identifier: Apache-2.0
"""The command `pull`: downloads a model from the Hugging Face hub into the hub's cache, where other programs find it.

huggingface_hub transfers the files and shows the progress. This module chooses the files, checks the disk space before
the download, and checks the files after it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from ...availability import bridge_command, install_command
from .. import tables
from . import listing as models
from . import recommended, resumed, usage

_PAGE = re.compile(r"https?://[^/]+/([^/]+/[^/]+?)(?:/(?:tree|blob)/([^/]+)(?:/(.+))?)?/?")
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_MODULE = re.compile(r"\d+_[A-Z]\w*/(config\.json|model\.safetensors)")
"""The parts of an embedding model that its modules.json lists."""
_MLX = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""The files of an MLX model. Weights in other formats, such as pickles, are not downloaded."""

_RETRY = "The part that has arrived is kept: try again"

_SPARE_BYTES = 256 << 20
"""Disk space in bytes that must stay free after a download."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file in a repository. `sha256` is known only for files that are stored as large files."""

    name: str
    size: int
    sha256: str | None


def pull(repo: str, wanted: str | None = None, revision: str | None = None, *, projector: bool = True) -> None:
    """Download a model, and print its name.

    Args:
        repo: The short name of a recommended model, OWNER/NAME, OWNER/NAME:FILE, or the address of a page.
        wanted: The file, or a part of its name. None: the only one.
        revision: A branch, tag or commit. None: the main branch.
        projector: Also download the projector for images and sound, if the repository has one.

    Raises:
        ClickException: The model can't be downloaded, or several files match.
        UsageError: `repo` is not a repository and not a recommended model.
    """
    repo, revision, wanted = _parse(repo, revision, wanted)
    hub = _hub()
    with _told(repo):
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    commit = str(info.sha)
    files = [_File(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None) for one in info.siblings or ()]
    chosen = _choose(repo, files, wanted, projector)
    missing = [
        one for one in chosen if not isinstance(hub.try_to_load_from_cache(repo, one.name, revision=commit), str)
    ]
    _check_room(hub, repo, missing)
    for number, one in enumerate(chosen, 1):
        if one in missing:
            kept = resumed.arrived(repo, one.sha256)
            rest = f", {tables.size(kept)} already downloaded" if kept else ""
            click.echo(f"{one.name} ({tables.size(one.size)}, {number} of {len(chosen)}{rest})", err=True)
    with _told(repo), _kept_at_ctrl_c():
        for one in missing:
            resumed.fetch(repo, commit, one.name, one.size, one.sha256)
        # By the revision's name, so that the cache records which commit it stands for.
        paths = {one.name: hub.hf_hub_download(repo, one.name, revision=revision or "main") for one in chosen}
    for one in missing:
        _check(paths[one.name], one)
    _tell(paths[chosen[0].name], chosen[0].name.lower().endswith(".gguf"))


def _parse(repo: str, revision: str | None, wanted: str | None) -> tuple[str, str | None, str | None]:
    if page := _PAGE.fullmatch(repo):
        repo, named, file = page[1], page[2], page[3]
        return repo, revision or named, wanted or file
    repo, _, tag = repo.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        one = recommended.find(repo)
        return one.repo, revision, wanted or tag or one.file
    return repo, revision, wanted or tag or None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        hint = f"Run: {install_command('cli')}"
        raise click.ClickException(f"pull needs the package huggingface_hub. {hint}") from None
    return huggingface_hub


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn errors of the hub into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise click.ClickException(
            f"{repo} is gated: ask for access on its page, then set HF_TOKEN, or run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise click.ClickException(
            f"the hub has no repository {repo}; for a private one set HF_TOKEN, or run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise click.ClickException(f"{repo} has no such branch, tag or commit") from None
    except errors.OfflineModeIsEnabled:
        raise click.ClickException("HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        told = " ".join(str(error).split())
        raise click.ClickException(f"{repo} could not be downloaded: {told}. {_RETRY}") from error
    except Exception as error:  # an error of the HTTP client, which depends on huggingface_hub's version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise click.ClickException(
            f"{repo} could not be downloaded: {type(error).__name__}: {error}. {_RETRY}"
        ) from error


@contextmanager
def _kept_at_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nThe part that has arrived is kept: the same command continues the download", err=True)
        raise


# ---------------------------------------------------------------- choosing files


def _choose(repo: str, files: Sequence[_File], wanted: str | None, projector: bool) -> list[_File]:
    ggufs = [one for one in files if one.name.lower().endswith(".gguf")]
    if not ggufs:
        return _checkpoint(repo, files, wanted)
    weights = [one for one in ggufs if "mmproj" not in one.name.lower()]
    known: dict[str, list[_File]] = {}
    for one in sorted(ggufs if wanted else weights, key=lambda one: one.name):
        known.setdefault(_PART.sub("", one.name), []).append(one)
    matching = _matching(known, wanted)
    if len(matching) != 1:
        raise click.ClickException(_which(repo, known, matching, wanted))
    (chosen,) = matching.values()
    projectors = [one for one in ggufs if one not in weights]
    if projector and projectors and chosen[0] in weights:
        chosen = [*chosen, min(projectors, key=lambda one: ("f16" not in _words(one.name), one.size))]
    return chosen


def _matching(known: dict[str, list[_File]], wanted: str | None) -> dict[str, list[_File]]:
    """Return the models that `wanted` names: by a file's name, a word of it (Q4_0, not Q4_0_4_4), or else a part."""
    if wanted is None:
        return known
    wanted = wanted.lower()
    means: tuple[Callable[[str, list[_File]], bool], ...] = (
        lambda name, parts: wanted in (name.lower(), *(one.name.lower() for one in parts)),
        lambda name, _: wanted in re.split(r"[-./]", name.lower()),
        lambda name, _: wanted in name.lower() or fnmatch.fnmatchcase(name.lower(), wanted),
    )
    for test in means:
        if matching := {name: parts for name, parts in known.items() if test(name, parts)}:
            return matching
    return {}


def _words(name: str) -> list[str]:
    return re.split(r"[-_./]", name.lower())


def _which(repo: str, known: dict[str, list[_File]], matching: dict[str, list[_File]], wanted: str | None) -> str:
    listed = matching or known
    lines = [f"  {name}  {tables.size(sum(one.size for one in parts))}" for name, parts in listed.items()]
    if wanted and not matching:
        what = f"{repo} has no file like {wanted!r}. It has"
    else:
        what = f"{repo} has {len(listed)} files{f' like {wanted!r}' if wanted else ''}: say which with --file"
    return "\n".join([what, *lines])


def _checkpoint(repo: str, files: Sequence[_File], wanted: str | None) -> list[_File]:
    if wanted:
        raise click.ClickException(f"{repo} has no GGUF files to choose from: leave --file out")
    chosen = [one for one in files if "/" not in one.name and any(fnmatch.fnmatch(one.name, form) for form in _MLX)]
    if any(one.name == "modules.json" for one in chosen):
        chosen += [one for one in files if _MODULE.fullmatch(one.name)]
    if not any(one.name.endswith(".safetensors") for one in chosen):
        raise click.ClickException(f"{repo} has no GGUF or safetensors files, so no backend can load it")
    return sorted(chosen, key=lambda one: (one.name != "config.json", one.name))


# ---------------------------------------------------------------- checks before and after the download


def _check_room(hub: Any, repo: str, missing: Sequence[_File]) -> None:
    place = hub.constants.HF_HUB_CACHE
    while not os.path.exists(place):
        place = os.path.dirname(place)
    needed = sum(max(one.size - resumed.arrived(repo, one.sha256), 0) for one in missing)
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise click.ClickException(
            f"not enough disk space: the download takes {tables.size(needed)}, {place} has {tables.size(free)} left. "
            "Free some, or set HF_HOME to a directory on another disk"
        )


def _check(path: str, file: _File) -> None:
    """Raise ClickException, and delete the file from the cache, if its checksum is not the one that the hub states."""
    if file.sha256 is None:  # a small file, which git keeps
        return
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while piece := data.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != file.sha256:
        os.unlink(os.path.realpath(path))
        if os.path.islink(path):
            os.unlink(path)
        raise click.ClickException(f"{file.name} arrived damaged (its checksum differs) and was deleted: try again")


def _tell(path: str, is_file: bool) -> None:
    place = path if is_file else os.path.dirname(path)
    found = {os.path.realpath(entry["source"]): entry for entry in models.listing()}
    entry = found.get(os.path.realpath(place))
    click.echo(f"It is in {place}", err=True)
    if entry is None:
        told = "It is not a model by itself, but a projector or an adapter, or its directory is not searched"
        click.echo(f"{told}. `{bridge_command('doctor')}` lists the directories.", err=True)
    elif entry["problem"]:
        click.echo(f"It can't be used yet: {entry['problem']}", err=True)
    else:
        click.echo(usage.line(entry["name"], entry["embeddings"], entry["ranks"]), err=True)
        click.echo(entry["ids"][0])
