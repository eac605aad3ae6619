"""params.yaml → frozen dataclasses. What can change a number is here; addresses and counts of workers are not.

An unknown key or a value of the wrong type is a ConfigError that names the key and, for a typo, the nearest one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aupipe.facs import AUSet
from aupipe.recipes import ALIGN_SIZE as ALIGN_SIZE
from aupipe.recipes import InitConfig as InitConfig
from aupipe.recipes import InputSpec as InputSpec
from aupipe.recipes import LossConfig as LossConfig
from aupipe.recipes import OptimiserConfig as OptimiserConfig
from aupipe.recipes import PhaseConfig as PhaseConfig
from aupipe.recipes import Recipe as Recipe
from aupipe.schema import ConfigError, DataError
from aupipe.values import build as build
from aupipe.values import nearest
from aupipe.values import to_json as to_json

PACKAGE = Path(__file__).parent
CODECS = ("jpeg", "raw")  # how aligned faces lie in a shard
LANDMARKS = ("blazemesh", "blazemesh-tiles", "blazemesh-litert", "supplied", "prealigned")  # or package.module:Class


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What the generator renders: people × sessions × seconds, at `fps`, in frames `size` pixels high."""

    subjects: int
    sessions: int
    seconds: float = 10.0  # of a session: long enough for neutral moments between movements
    fps: float | None = None  # the layout's own: BP4D 25, DISFA 20, Aff-Wild2 30
    size: int = 256
    uncoded: int = 2  # frames before the coded span, which have an image and no labels; BP4D's layout alone has them
    seed: int = 0
    margins: str | None = None  # base rates of bp4d, disfa or affwild2; the layout's own
    rig: str = "face_units"  # how AUs move the face; another rig is another artist, to be held out of training
    corruption: float = 0.33  # share of sessions in which single frames are blurred, noisy, covered or badly exposed
    defects: int | None = None  # the seed of the damage that is done to the files; None leaves them whole
    right_camera: bool = False  # DISFA's second view
    landmarks: bool = True  # files of exact landmarks, in the layouts that have such files: BP4D's and DISFA's

    def __post_init__(self) -> None:
        if min(self.subjects, self.sessions, self.seconds) <= 0 or self.size < 64 or self.uncoded < 0:
            raise ConfigError("a synthetic corpus needs positive subjects, sessions and seconds, and a size ≥ 64")
        if self.fps is not None and self.fps <= 0:
            raise ConfigError("a synthetic corpus needs a positive fps, or none for the layout's own")
        if self.margins not in (None, "bp4d", "disfa", "affwild2"):
            raise ConfigError(f"unknown margins '{self.margins}' of a synthetic corpus; known are bp4d, disfa, affwild2")
        if self.rig not in ("face_units", "expression_units", "mixed"):
            raise ConfigError(f"unknown rig '{self.rig}'; known are face_units, expression_units, mixed")
        if not 0 <= self.corruption <= 1 or (self.defects is not None and self.defects < 0):
            raise ConfigError("a synthetic corpus's corruption is a share between 0 and 1, and its defects a seed ≥ 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConfig:
    """Subject-exclusive folds: the layout's published partition, or `k` drawn ones; `val` is held out of each train side.

    `leave_one_out`: a fold for each part that came with the data, such as the corpora of the layout `several`.
    """

    published: bool = True
    leave_one_out: bool = False
    k: int = 3
    val_fraction: float = 1 / 6

    def __post_init__(self) -> None:
        if self.k < 2 or not 0 < self.val_fraction < 1:
            raise ConfigError("folds need k ≥ 2 and a val_fraction between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A corpus on disk: its layout and that layout's own options, the AUs it codes, and how its faces are aligned.

    `landmarks`: found in every frame by blazemesh, one of its variants or a landmarker of your own,
    package.module:Class; supplied with the corpus, and found where they are missing; or prealigned, where the images are
    faces already and are only brought to size. `frames`: whose labels count, those of all
    "coded" frames (as in ME-GraphAU's lists), or only of those with "landmarks" among the supplied ones (JAA-Net's lists).
    `codec`: aligned faces as "jpeg", or "raw": seven times the space, and nothing to decode.
    """

    layout: str
    aus: str | tuple[int, ...]
    landmarks: str = "blazemesh"
    align: tuple[str, ...] = ("face200",)
    codec: str = "jpeg"
    jpeg_quality: int = 95
    max_bad_fraction: float = 0.05
    licence: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    frames: str = "coded"
    folds: FoldConfig = field(default_factory=FoldConfig)
    synthetic: SyntheticConfig | None = None

    def __post_init__(self) -> None:
        AUSet.named(self.aus)
        unknown = [a for a in self.align if a not in ALIGN_SIZE]
        if unknown or not self.align:
            raise ConfigError(f"unknown alignment {unknown} of a corpus; known are {', '.join(ALIGN_SIZE)}")
        if self.landmarks not in LANDMARKS and ":" not in self.landmarks:
            known = ", ".join(LANDMARKS)
            raise ConfigError(f"unknown source of landmarks '{self.landmarks}'; known are {known} and package.module:Class")
        if self.codec not in CODECS:
            raise ConfigError(f"unknown codec '{self.codec}' of a corpus; known are {', '.join(CODECS)}")
        if self.frames not in ("coded", "landmarks"):
            raise ConfigError(f"unknown set of frames '{self.frames}' of a corpus; known are coded, landmarks")
        for option, beside in (("landmarks", "landmarks"), ("mask_lost", "frames")):
            if option in self.options:
                raise ConfigError(f"a corpus's options do not hold '{option}'; set its key {beside} instead")

    @property
    def au_set(self) -> AUSet:
        return AUSet.named(self.aus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What `dvc repro` runs: every recipe on every corpus and fold named here."""

    recipes: tuple[str, ...]
    corpora: tuple[str, ...]
    folds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (self.recipes and self.corpora and self.folds):
            raise ConfigError("an experiment needs at least one recipe, one corpus and one fold")


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    seed: int
    experiment: Experiment
    corpora: dict[str, Corpus]
    recipes: dict[str, Recipe]

    def corpus(self, name: str) -> Corpus:
        return _pick(self.corpora, name, "corpus", "corpora")

    def recipe(self, name: str) -> Recipe:
        return _pick(self.recipes, name, "recipe", "recipes")


def load_params(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> Params:
    """Read and check `path`. Overrides look like "recipes.stral.model.temporal_kernel=3"; their values are YAML.

    Recipes come with their bases resolved. Raises ConfigError for an unreadable file, an unknown key or a wrong type.
    """
    values = read_yaml(Path(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping; compare it with params.yaml of the repository")
    for override in overrides:
        _apply(values, override)
    recipes = values.get("recipes")
    if isinstance(recipes, dict):
        values["recipes"] = {name: _resolve(recipes, name, ()) for name in recipes}
    params: Params = build(Params, values, str(path))
    for name in params.recipes:
        _check_origin(params, name)
    for kind, chosen, known in (
        ("recipes", params.experiment.recipes, params.recipes),
        ("corpora", params.experiment.corpora, params.corpora),
    ):
        for name in chosen:
            _pick(known, name, kind[:-1] if kind == "recipes" else "corpus", f"experiment.{kind}")
    return params


def read_yaml(path: Path) -> Any:
    """The one place where YAML is read, always by the safe loader. Raises ConfigError if it is absent or malformed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist here; run the command in the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None


def _resolve(recipes: dict[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A recipe with its `base` merged in, key by key; lists and scalars replace."""
    if name in seen:
        raise ConfigError(f"recipes: the bases {' → '.join((*seen, name))} form a circle")
    if name not in recipes:
        raise ConfigError(f"recipes.{seen[-1]}: unknown base '{name}'{nearest(name, recipes)}")
    own = recipes[name]
    if not isinstance(own, dict):
        raise ConfigError(f"recipes.{name}: expected a mapping, got {own!r}")
    own = dict(own)
    base = own.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"recipes.{name}: base: expected the name of a recipe, got {base!r}")
    if base is None:
        return own
    inherited = _resolve(recipes, base, (*seen, name))
    inherited.pop("expected", None)  # what a paper prints, it prints for this one row
    return _merge(inherited, own)


def _check_origin(params: Params, name: str) -> None:
    """Raises ConfigError if a recipe starts, through however many others, from itself or from one that is not there."""
    seen, init = [name], params.recipes[name].init
    while init is not None:
        if init.recipe in seen:
            raise ConfigError(f"recipes: {' → '.join((*seen, init.recipe))}: what they start from (init) is a circle")
        origin = _pick(params.recipes, init.recipe, "recipe", f"recipes.{seen[-1]}.init")
        if init.corpus is not None:
            _pick(params.corpora, init.corpus, "corpus", f"recipes.{seen[-1]}.init")
        seen, init = [*seen, init.recipe], origin.init


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merge(base[k], v) for k, v in own.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **own, **both}


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"the override '{override}' is not of the form some.key=value")
    *parents, last = path.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"the override '{override}' goes through '{parent}', which is no mapping")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the override '{override}' is not readable YAML") from None


def _pick(table: dict[str, Any], name: str, kind: str, where: str) -> Any:
    if name not in table:
        raise ConfigError(f"unknown {kind} '{name}' in {where} of params.yaml{nearest(name, table)}")
    return table[name]


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """ "name=value" → {name: value}, the values being YAML. Raises ConfigError for other texts."""
    values: dict[str, Any] = {}
    for text in texts:
        if "." in text.partition("=")[0]:
            raise ConfigError(f"the option '{text}' is not of the form name=value")
        _apply(values, text)
    return values


def fingerprint(value: Any, files: Iterable[Path] = ()) -> str:
    """sha256 over a JSON-able value and the bytes of files: the key under which a finished piece of work is kept."""
    digest = hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode())
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def code(*rooms: str) -> list[Path]:
    """The source files of the named modules or folders of the package: code("align", "datasets")."""
    files: list[Path] = []
    for room in rooms:
        module = PACKAGE / f"{room}.py"
        files += [module] if module.exists() else sorted((PACKAGE / room).glob("*.py"))
    return files


def raw_root(corpus: str) -> Path:
    """Where a corpus's raw tree lies: $AUPIPE_RAW/<corpus>, by default data/raw/<corpus>."""
    return Path(os.environ.get("AUPIPE_RAW", "data/raw")) / corpus


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """The manners of every command: a user's error is one sentence on stderr and exit code 2, never a traceback."""
    try:
        yield
    except (ConfigError, DataError) as error:
        print(f"aupipe: {error}", file=sys.stderr)
        raise SystemExit(2) from None
