"""Names of models: family members, folders, GGUF files, hub ids and random-init models."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from probes.errors import ModelError
from probes.files import data_folder, derived_folder, list_derived_models, list_models

GGUF_SUFFIX = ".gguf"

BARE_HUB_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
"""Decoders whose hub id has no owner."""

_MAX_SEED_DIGITS = 18

_OWNER, _REPOSITORY = r"\w[\w.-]{0,95}", r"[\w.-]{1,96}"
_HUB_ID = re.compile(rf"{_OWNER}/{_REPOSITORY}(/[\w./-]+\.gguf)?(@[\w./-]{{1,200}})?")
_NAMED = re.compile(r"(\w[\w.+-]{0,99})=(.+)", re.DOTALL)
_PLAIN_FOLDERS = ("hf", "model", "final", "best", "last", "checkpoint", "merged", "weights")


def parse_random_init(name: object) -> tuple[str, int] | None:
    """Model and seed of a name such as "random-init:full:3"; None for other names."""
    kind, _, rest = str(name).partition(":")
    if kind != "random-init" or not rest:
        return None
    like, _, seed = rest.partition(":")
    if not (seed or "0").isdecimal() or len(seed) > _MAX_SEED_DIGITS:
        raise ModelError(
            f"The seed of {str(name)[:80]!r} is {seed[:40]!r}: write a number of up to "
            f"{_MAX_SEED_DIGITS} digits, as in 'random-init:full:3'"
        )
    return like, int(seed or 0)


def split_name(spec: str | Path) -> tuple[str, str]:
    """Name and place of a model that is given as "NAME=PLACE", or as its place alone.

    A folder with a name that says nothing, such as "hf", is called by the folder around it.
    """
    text = str(spec)
    named = _NAMED.fullmatch(text)
    if named and not _exists(Path(text)):
        return named[1], named[2]
    path = Path(text)
    if _exists(path):
        path = path.resolve()
    return (path.parent if path.name in _PLAIN_FOLDERS else path).name, text


_STORED = ("family member ", "folder ", "GGUF file ", "hub ")


def stored_source(origin: str) -> str:
    """What `load` takes for a model of this origin; "" where it was not read from files alone."""
    kind = next((kind for kind in _STORED if origin.startswith(kind)), "")
    return origin.removeprefix(kind) if kind and " with " not in origin else ""


def find_model(name: str | Path) -> tuple[str, str]:
    """Folder, GGUF file or hub id of a name, and a description of it.

    Raises:
        ModelError: There is no such model.
    """
    text = split_name(name)[1]
    if text in list_models():
        return str(data_folder() / "models" / text), f"family member {text}"
    folder = Path(text)
    if _exists(folder / "config.json"):
        if folder.resolve().name.startswith("."):
            raise ModelError(
                f"{text!r} is a hidden folder, which may be an unfinished draft: give a folder "
                "whose name does not begin with a dot"
            )
        return str(folder), f"folder {folder.resolve()}"
    if _exists(folder):
        file = _only_gguf(folder)
        return str(file), f"GGUF file {file.resolve()}"
    if _HUB_ID.fullmatch(text) or text.partition("@")[0] in BARE_HUB_IDS:
        return text, f"hub {text}"
    if text in (derived := list_derived_models()):
        return str(derived_folder() / text), f"made in {derived_folder()}"
    if text.endswith(GGUF_SUFFIX):
        raise ModelError(f"No GGUF file {text[:200]!r}: check the path{_others(folder.parent)}")
    known = (*list_models(), *derived)
    near = difflib.get_close_matches(text, known, n=1)
    raise ModelError(
        f"No model {text[:200]!r}: not a family name ({', '.join(known) or 'none here'}), a folder "
        "with config.json, a GGUF file, a hub id such as owner/name, or a random-init model such "
        f"as random-init:full:3. {f'Did you mean {near[0]!r}?' if near else 'Check the name.'}"
    )


def _only_gguf(place: Path) -> Path:
    """GGUF file of a path that has no config.json: the file itself, or the only one in a folder."""
    if not place.is_dir():
        return place
    files = sorted(place.glob(f"[!.]*{GGUF_SUFFIX}"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ModelError(
            f"{str(place)!r} holds {len(files)} GGUF files ({_join(files)}): give one of them"
        )
    inside = sorted(path.parent for path in place.glob("[!.]*/config.json"))
    found = _join(sorted(place.iterdir())) or "nothing"
    fix = f"give one of {_join(inside)} in it" if inside else "give the folder of a saved model"
    raise ModelError(
        f"{str(place)!r} holds neither config.json nor a GGUF file, but {found}: {fix}"
    )


def _others(folder: Path) -> str:
    """GGUF files of a folder, as the end of an error message."""
    files = sorted(folder.glob(f"[!.]*{GGUF_SUFFIX}")) if _exists(folder) else ()
    return f"; {_join(files)} found there" if files else ""


def _join(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:5]]
    return ", ".join([*names, f"{len(paths) - 5} more"] if len(paths) > 5 else names)


def _exists(path: Path) -> bool:
    """Whether there is a path; not where its name is too long, or no name at all."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
