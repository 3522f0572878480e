# SPDX-License-Identifier: Apache-2.0
"""Searches directories and all their subdirectories for models: GGUF files and MLX directories.

The search has three steps: `_walk` lists directories, `_models_in` reads the models in one directory, and
the last step processes all models together: it assigns projectors and names, and removes duplicates.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .._cache.scan_cache import Memory
from ..errors import printable
from . import ollama, stores
from .found import DiscoveredModel, as_part, stem
from .headers import checkpoint, gguf, gguf_values

MAX_DIRECTORIES = 50_000

_JSON = {"config.json", "model_index.json", "model.safetensors.index.json", checkpoint.MODULES_FILE}
_MODULE = re.compile(r"\d+_[A-Z]\w*")
"""The directory of a module of an embedding model."""
_IGNORED = {".git", ".locks", ".no_exist"}  # the last two: Hugging Face's, full of empty files with models' names


def search(roots: Sequence[str], memory: Memory) -> list[DiscoveredModel]:
    """Return the models in `roots` and their subdirectories, with their names, sorted by name.

    Args:
        roots: Absolute paths.
        memory: Records all files and directories that the search depends on.
    """
    found: list[_Found] = []
    projectors: dict[str, list[_Projector]] = defaultdict(list)
    for listing in _walk(roots, memory):
        for item in _models_in(listing):
            if isinstance(item, _Projector):
                projectors[listing.path].append(item)
            else:
                found.append(item)
    found = _once(found)
    _assign_projectors(found, projectors)
    named = [_shown(item.model, name) for item, name in zip(found, _names(found), strict=True)]
    return sorted(named, key=lambda model: (model.name, model.path))


def model_of(directory: str, files: Mapping[int, str], total: int, memory: Memory) -> DiscoveredModel | None:
    """Return the model that consists of some files of one directory, without a name. None: the files are not a model.

    Args:
        directory: An absolute path.
        files: The parts of a GGUF model by their numbers; empty for the MLX model in the directory.
        total: The number of parts that the model has.
        memory: Records all files that the result depends on.
    """
    listing = _Listing(directory, os.path.realpath(directory), False, memory)
    memory.note(directory)
    parts, name_parts = stores.hub_parts(directory)
    with os.scandir(directory) as entries:
        for entry in entries:
            if not files or "mmproj" in entry.name.lower():
                _add(listing, entry)
    if not files:
        if not checkpoint.is_checkpoint(listing.sizes):
            return None
        return _shown(_checkpoint(listing, parts, name_parts).model, "")
    beside = [item for item in _models_in(listing) if isinstance(item, _Projector)]
    for name in files.values():
        listing.files[name] = os.path.islink(os.path.join(directory, name))
        listing.sizes[name] = _noted_size(os.path.join(directory, name), listing.memory)
    found = [item for item in _gguf(listing, files, total, parts) if isinstance(item, _Found)]
    _assign_projectors(found, {directory: beside})
    return _shown(found[0].model, "") if found else None


# ---------------------------------------------------------------- directories


@dataclass(slots=True)
class _Listing:
    """The content of one directory: its subdirectories and files by name, each with whether it is a link.

    `sizes` are in bytes; -1: the file is a link whose target does not exist. `real` is the path without links.
    """

    path: str
    real: str
    is_link: bool
    memory: Memory
    directories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bool] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def is_ollama(self) -> bool:
        return "manifests" in self.directories and "blobs" in self.directories

    @property
    def is_pipeline(self) -> bool:
        """Whether this is an image generator in the form of diffusers: its text encoders are not separate models."""
        return "model_index.json" in self.files

    @property
    def has_modules(self) -> bool:
        """Whether this is an embedding model with modules in subdirectories, which must not be listed as models."""
        return checkpoint.MODULES_FILE in self.files

    def real_path(self, file: str) -> str:
        return os.path.realpath(os.path.join(self.path, file)) if self.files[file] else os.path.join(self.real, file)


def _walk(roots: Iterable[str], memory: Memory) -> Iterator[_Listing]:
    """Yield every directory under `roots` once.

    Links to directories are followed last, so that the path under which a directory is found does not depend
    on the order of links or roots.
    """
    seen: set[str] = set()
    waiting = set(roots)
    links = False
    while waiting:
        further: set[str] = set()
        for start in sorted(waiting, key=lambda path: (os.path.realpath(path) != path, path)):
            stack = [(start, os.path.realpath(start))]
            while stack:
                path, real = stack.pop()
                if real in seen:
                    if links and not f"{path}{os.sep}".startswith(f"{real}{os.sep}"):  # a name of its own
                        listing = _list(path, real, True, memory)
                        if listing is not None and checkpoint.is_checkpoint(listing.sizes):
                            yield listing
                    continue
                if len(seen) == MAX_DIRECTORIES:
                    _warn("stopped looking for models after %d directories, at %s", MAX_DIRECTORIES, path)
                    memory.trusted = False
                    return
                seen.add(real)
                listing = _list(path, real, links, memory)
                if listing is None:
                    continue
                yield listing
                if listing.is_ollama or listing.is_pipeline:
                    continue
                for name, is_link in sorted(listing.directories.items(), reverse=True):
                    if is_link:
                        further.add(os.path.join(path, name))
                    elif name not in _IGNORED and not (listing.has_modules and _MODULE.fullmatch(name)):
                        stack.append((os.path.join(path, name), os.path.join(real, name)))
        waiting, links = further, True


def _list(path: str, real: str, is_link: bool, memory: Memory) -> _Listing | None:
    listing = _Listing(path, real, is_link, memory)
    memory.note(path)
    if os.path.basename(path) == "refs":  # which revision of a repository is the main one
        memory.note(os.path.join(path, "main"))
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                _add(listing, entry)
    except OSError as error:
        _warn("no models are looked for in %s: %s", path, error.strerror or error)
        memory.trusted = False  # or the next search would not say so
        return None
    return listing


def _add(listing: _Listing, entry: os.DirEntry[str]) -> None:
    name, is_link = entry.name, entry.is_symlink()
    try:
        if entry.is_dir():
            listing.directories[name] = is_link
            return
        wanted = name in _JSON or name.lower().endswith((".gguf", ".safetensors"))
        if wanted and not name.startswith("._") and (entry.is_file() or is_link):
            found = entry.stat() if entry.is_file() else None
            listing.memory.note(entry.path, found)
            listing.sizes[name] = -1 if found is None else found.st_size
            listing.files[name] = is_link
        elif is_link:  # it may lead to a directory some day
            listing.memory.note(entry.path)
    except OSError:  # a loop of links
        listing.memory.note(entry.path)
        if name.lower().endswith(".gguf"):
            listing.files[name], listing.sizes[name] = True, -1


def _warn(message: str, *values: object) -> None:
    import logging

    values = tuple(_on_one_line(value) if isinstance(value, str) else value for value in values)
    logging.getLogger(__name__).warning(message, *values)


# ---------------------------------------------------------------- one directory


@dataclass(slots=True)
class _Found:
    """A model without its final name. The name is the last `name_parts` of `parts`, if no other model has it."""

    model: DiscoveredModel
    identity: object
    is_link: bool
    parts: tuple[str, ...]
    name_parts: int = 1
    hidden_size: int = 0


class _Projector(NamedTuple):
    path: str
    projection_size: int
    images: bool
    audios: bool

    def given_to(self, model: DiscoveredModel) -> DiscoveredModel:
        return model._replace(mmproj=self.path, images=self.images, audios=self.audios)


class _Facts(NamedTuple):
    """The properties of one GGUF file. They are cached, because reading them takes most of the time of a search."""

    kind: gguf.Kind = "model"
    architecture: str = ""
    context_length: int = 0
    hidden_size: int = 0
    projection_size: int = 0
    embeds: bool = False
    images: bool = False
    audios: bool = False
    chat: bool = False
    ranks: bool = False
    problem: str | None = None
    elements: Mapping[int, int] = {}


def _models_in(listing: _Listing) -> Iterator[_Found | _Projector]:
    if listing.is_ollama:
        yield from _ollama_models(listing)
        return
    parts, name_parts = stores.hub_parts(listing.path)
    if checkpoint.is_checkpoint(listing.sizes):
        yield _checkpoint(listing, parts, name_parts)
    split: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for file in sorted(file for file in listing.files if file.lower().endswith(".gguf")):
        part = as_part(file)
        if part and 1 <= int(part[2]) <= int(part[3]):
            split[part[1], part[3]][int(part[2])] = file
        else:
            yield from _gguf(listing, {1: file}, 1, parts)
    for (_, total), files in split.items():
        yield from _gguf(listing, files, int(total), parts)


def _projector(path: str, facts: _Facts) -> _Projector:
    # Old projectors state neither: at that time all projectors were for images.
    return _Projector(path, facts.projection_size, facts.images or not facts.audios, facts.audios)


def _checkpoint(listing: _Listing, parts: tuple[str, ...], name_parts: int) -> _Found:
    sizes = {name: size for name, size in listing.sizes.items() if size >= 0}
    read = checkpoint.read_checkpoint(listing.path, sizes)
    model = DiscoveredModel(
        path=listing.path,
        name="",
        format="mlx",
        model_type=read.model_type,
        quant_bits=read.quant_bits,
        quant_group=read.quant_group,
        num_files=len(read.files),
        size_bytes=sum(sizes[name] for name in read.files),
        problem=read.problem,
        context_length=read.context_length,
        embeddings=read.embeddings,
        chat=read.chat,
    )
    for name in checkpoint.TEMPLATE_FILES:
        listing.memory.note(os.path.join(listing.path, name))
    identity = tuple(listing.real_path(name) for name in ("config.json", *read.files))
    is_link = listing.is_link or "@" in parts[-name_parts:][-1]
    return _Found(model, identity, is_link, parts, name_parts)


def _gguf(
    listing: _Listing, files: Mapping[int, str], total: int, parts: tuple[str, ...]
) -> Iterator[_Found | _Projector]:
    """Yield the model or projector that a GGUF file, or the parts of a split one, contains."""
    names = [files[part] for part in sorted(files)]
    path = os.path.join(listing.path, names[0])
    facts = [_facts(os.path.join(listing.path, name), listing.sizes[name], listing.memory) for name in names]
    if facts[0].kind == "projector":
        yield _projector(path, facts[0])
    if facts[0].kind != "model":
        return
    missing = None
    if len(files) < total:
        absent = next(part for part in range(1, total + 1) if part not in files)
        missing = f"{total - len(files)} of its {total} parts missing, such as part {absent}: fetch it again"
    model = _gguf_model(path, facts, sum(max(listing.sizes[name], 0) for name in names), missing)
    yield _Found(
        model,
        listing.real_path(names[0]),
        listing.is_link or listing.files[names[0]],
        (*parts, stem(names[0])),
        hidden_size=facts[0].hidden_size,
    )


def _gguf_model(path: str, facts: Sequence[_Facts], size: int, problem: str | None) -> DiscoveredModel:
    """Return the model whose parts have these `facts`. A problem of a part takes precedence over `problem`."""
    lead = facts[0]
    elements: dict[int, int] = defaultdict(int)
    for fact in facts:
        for type_, count in fact.elements.items():
            elements[type_] += count
    problem = next((fact.problem for fact in facts if fact.problem), problem)
    if not problem and not lead.architecture:
        problem = "it does not state the model's architecture (general.architecture)"
    if not problem and not elements:
        problem = "it contains no weights"
    bits, group = gguf.quantisation(elements)
    return DiscoveredModel(
        path=path,
        name="",
        format="gguf",
        model_type=lead.architecture,
        quant_bits=bits,
        quant_group=group,
        num_files=len(facts),
        size_bytes=size,
        problem=problem,
        context_length=lead.context_length,
        embeddings=lead.embeds,
        chat=lead.chat or lead.problem is not None,
        ranks=lead.ranks,
    )


def _facts(path: str, size: int, memory: Memory) -> _Facts:
    known = memory.facts(path)
    if known is not None:
        return _Facts._make([*known[:-1], dict(known[-1])])
    facts = _read_gguf(path, size)
    memory.learn(path, [*facts[:-1], list(facts.elements.items())])
    return facts


def _read_gguf(path: str, size: int) -> _Facts:
    if size < 0:
        return _Facts(problem="it is a link to a file that does not exist")
    try:
        read = gguf.read_metadata(path)
    except gguf.GGUFError as error:
        return _Facts(problem=error.problem)
    if read.missing_bytes:
        return _Facts(problem=f"it ends at byte {read.size_bytes:,} of {read.data_end:,}: fetch it again")
    kind = read.kind
    if kind == "model" and "mmproj" in os.path.basename(path).lower():
        kind = "projector"
    info = read.info
    sizes = (read.integer(f"clip.{part}projection_dim") for part in ("vision.", "audio.", ""))
    return _Facts(
        kind=kind,
        architecture=info.architecture,
        context_length=info.context_length,
        hidden_size=info.hidden_size,
        projection_size=next(filter(None, sizes), 0),
        embeds=read.embeds,
        ranks=read.ranks,
        chat=bool(read.values.get("tokenizer.chat_template")),
        problem=gguf_values.impossible(read) if kind in ("model", "projector") else None,
        images=read.values.get("clip.has_vision_encoder") is True,
        audios=read.values.get("clip.has_audio_encoder") is True,
        elements=read.elements,
    )


def _ollama_models(listing: _Listing) -> Iterator[_Found]:
    for directory, _, tags in os.walk(os.path.join(listing.path, "manifests")):
        listing.memory.note(directory)
        for tag in tags:
            listing.memory.note(os.path.join(directory, tag))
    for tagged in ollama.models_in(listing.path):
        size = _noted_size(tagged.path, listing.memory)
        facts = _Facts(problem=tagged.problem) if tagged.problem else _facts(tagged.path, size, listing.memory)
        if facts.kind == "model":
            model = _gguf_model(tagged.path, [facts], max(size, 0), None)
            if tagged.projector is not None:
                size = _noted_size(tagged.projector, listing.memory)
                model = _projector(tagged.projector, _facts(tagged.projector, size, listing.memory)).given_to(model)
            parts = (*listing.path.split(os.sep), *tagged.parts)
            yield _Found(model, os.path.realpath(tagged.path), listing.is_link, parts)


def _noted_size(path: str, memory: Memory) -> int:
    """Return the size in bytes of a file outside the listed directories, and record that the search depends on it.

    -1: there is no such file.
    """
    memory.note(path)
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


# ---------------------------------------------------------------- all together


def _once(found: Iterable[_Found]) -> list[_Found]:
    """Return each model once for each of its names.

    Of several paths with the same name, the one without links is kept, otherwise the shortest and first. A link whose
    name differs from its target's counts as another name of the model.
    """
    kept: list[_Found] = []
    names: dict[object, set[str]] = defaultdict(set)
    for item in sorted(found, key=lambda item: (item.is_link, len(item.parts[-1]), item.model.path, item.parts)):
        name, known = item.parts[-1].partition("@")[0], names[item.identity]
        if not known or (item.is_link and name not in known):
            kept.append(item)
        known.add(name)
    return kept


def _assign_projectors(found: Iterable[_Found], projectors: Mapping[str, Sequence[_Projector]]) -> None:
    """Assign to each GGUF model a projector in its own directory or in the directory above.

    A projector belongs to the models whose hidden size equals the width of its output. Old projectors state
    another number: a projector whose number fits no model belongs to all models in its directory.
    """
    fitting: dict[int, list[_Projector]] = {}
    taken: set[_Projector] = set()
    plain = [item for item in found if item.model.format == "gguf" and not item.model.problem and not item.model.mmproj]
    for item in plain:
        directory = os.path.dirname(item.model.path)
        for place in (directory, os.path.dirname(directory)):
            fit = [one for one in projectors.get(place, ()) if one.projection_size == item.hidden_size > 0]
            if fit:
                fitting[id(item)] = fit
                taken.update(fit)
                break
    for item in plain:
        beside = projectors.get(os.path.dirname(item.model.path), ())
        choice = fitting.get(id(item)) or [one for one in beside if one not in taken]
        if choice:
            best = min(choice, key=lambda one: _preference(one, item.parts[-1]))
            item.model = best.given_to(item.model)


def _preference(projector: _Projector, model: str) -> tuple[int, bool, str]:
    """Return a sort key: the most similar name first, then projectors in 16 bits, which every engine supports."""
    name = os.path.basename(projector.path).lower()
    words = set(re.split(r"[-_. ]", name))
    return -len(words & set(re.split(r"[-_. ]", model.lower()))), "f16" not in words, projector.path


def _names(found: Sequence[_Found]) -> list[str]:
    """Return a name for each model: the shortest end of its path that no other model has."""
    paths = [tuple(map(_on_one_line, item.parts)) for item in found]
    for same in _groups(paths):  # of one directory, so their paths don't tell them apart
        for index in same:
            paths[index] = (*paths[index][:-1], _on_one_line(os.path.basename(found[index].model.path)))
    lengths = [item.name_parts for item in found]
    while True:
        names = ["/".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]
        longer = [index for same in _groups(names) for index in same if lengths[index] < len(paths[index])]
        if not longer:
            return names
        for index in longer:
            lengths[index] += 1


def _shown(model: DiscoveredModel, name: str) -> DiscoveredModel:
    """Return the model with its name, and without control characters in the texts from its files."""
    problem = model.problem and _on_one_line(model.problem)
    return model._replace(name=name, model_type=_on_one_line(model.model_type), problem=problem)


def _on_one_line(text: str) -> str:
    return re.sub(r"[\n\t]", "\ufffd", printable(text))


def _groups(keys: Sequence[object]) -> list[list[int]]:
    """Return the indices of each group of two or more equal keys."""
    places: dict[object, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return [same for same in places.values() if len(same) > 1]
