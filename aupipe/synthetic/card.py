"""A corpus's card: what was made, of what, for what, and what is assumed; as JSON, and as Markdown for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from aupipe.assets import provenance
from aupipe.config import SyntheticConfig, to_json
from aupipe.facs import ACTION_UNITS
from aupipe.synthetic.distraction import list_rates
from aupipe.synthetic.glasses import wears_glasses
from aupipe.synthetic.identity import TONE_LIMITS, TONES, Identity, draw_identity
from aupipe.synthetic.margins import MARGINS, Margins
from aupipe.synthetic.motion import ACTIVE, PAIRS, SMOOTH
from aupipe.synthetic.timing import OFFSET, ONSET

GENERATOR = "4"
LICENCE = "CC0-1.0 (rendered people who do not exist)"
AGE_GROUPS = ("young", "middle", "old")
_ASSUMPTIONS = (
    "The people do not exist; their shapes are drawn from MakeHuman's CC0 head, whose macro shapes carry MakeHuman's names.",
    "Which AUs go together is assumed, not measured: no co-occurrence table of the real corpora is public.",
    f"How long movements last is assumed, not measured: latent signals are smooth over {SMOOTH} s, muscles follow within "
    f"{ONSET} s on the way up and {OFFSET} s on the way down, more quickly in some people than in others.",
    "How often people talk, wink, puff their cheeks or smile with one half of the mouth is assumed, not measured; what of "
    "it shows as a coded AU is labelled as that AU, and nothing else is.",
    "Rates hold on average over many people in sessions of any length; few people deviate from the aims.",
    f"Tones are bands of the renderer's own melanin scale: light below {TONE_LIMITS[0]}, dark from {TONE_LIMITS[1]} on.",
    "Skin tone, age and hair are drawn from smooth distributions that stand for no population; groups of age divide "
    "MakeHuman's scale from young to old into three and are no years.",
    "A fifth of the people wear glasses in all their sessions; something passes before the face in three sessions of ten. "
    "How rooms, lights and cameras are distributed is assumed, and wide on purpose.",
    "Folds of the skin are relief that the light brings out, drawn on the smooth mesh: they cast no shadow.",
)
_OF_LAYOUT = {
    "bp4d": (
        "About 1 % of the cells are 9, not coded, in short runs of the upper or the lower face: assumed.",
        "Landmarks are exact; about 1 % of the entries are empty, not a number or zero, as a tracker leaves them: assumed.",
    ),
    "disfa": (
        "AU05 and AU20 are movements that other layouts do not code; they are exactly known and have their files here.",
        "Landmarks are exact; about 1 % of the files hold no numbers or zeros, as a tracker leaves them: assumed.",
        "The videos are Motion JPEG; DISFA's are Cinepak. Sessions of a person are joined before one camera.",
        "The last person's labels lack their last row, as those of DISFA's SN010 do.",
    ),
    "affwild2": (
        "About 27 % of the rows are −1, in stretches of assumed length; some 2 % of the crops are missing.",
        "Crops are the exact face with a margin, as unsteady as a detector's; no crop of the shared video shows both faces.",
        "A person with several sessions appears in several videos, always on the same side of the official split.",
    ),
}


_COUNTED = ("frames", "images", "landmarks", "landmarks_lost")


def build_card(
    spec: SyntheticConfig,
    layout: str,
    generator: str,
    made: Sequence[dict[str, Any]],
    damage: dict[str, Any],
) -> dict[str, Any]:
    """The card, plain JSON. `generator`: the hash that every recording depends on · `made`: each recording's counts."""
    margins = MARGINS[spec.margins or layout]
    return {
        "layout": layout,
        "licence": LICENCE,
        "generator": {"version": GENERATOR, "sha256": generator},
        "params": to_json(spec),
        "seeds": {
            "root": spec.seed,
            "streams": "numpy default_rng([root, subject, concern]); noise per frame",
            "defects": spec.defects,
        },
        "assets": {"head.npz": provenance()["head.npz"]},
        "margins": {"name": spec.margins or layout, "occurs_at": margins.occurs_at},
        "counts": _count_people([draw_identity(spec.seed, subject) for subject in range(spec.subjects)])
        | {"subjects": spec.subjects, "sessions": len(made)}
        | {name: sum(counts[name] for counts in made) for name in _COUNTED if made and name in made[0]},
        "aus": _count_aus(made, margins),
        "assumptions": [*_ASSUMPTIONS, *_OF_LAYOUT[layout], _describe_aims(margins)],
        "assumed": _list_assumed(margins),
        "defects": damage,
    }


def card_markdown(card: dict[str, Any]) -> str:
    """The card of a synthetic corpus as a Markdown page."""
    counts, margins = card["counts"], card["margins"]
    groups = [f"| {kind} | {name} | {n} |" for kind in ("sex", "tone", "age") for name, n in counts[kind].items()]
    groups.append(f"| glasses | worn | {counts['glasses']} |")
    rates = [
        f"| {name} | {_name_au(name)} | {au['coded']} | {au['positive']} | {_percent(au['rate'])} | {_percent(au['aim'])} |"
        for name, au in card["aus"].items()
    ]
    assets = [f"| {name} | {kept.get('sha256', '')} |" for name, kept in card["assets"].items()]
    lines = [
        f"# {card.get('corpus', 'A synthetic FACS corpus')}",
        "",
        f"{counts['subjects']} people who do not exist, {counts['sessions']} recordings, {counts['images']} images, "
        f"{counts['frames']} label rows, in the layout `{card['layout']}`. Licence: {card['licence']}.",
        "",
        f"Generator {card['generator']['version']} (`{card['generator']['sha256']}`), root seed {card['seeds']['root']}.",
        *_table("Who is in it", "| group | | people |", groups),
        *_table(
            f"Action Units, present from intensity {margins['occurs_at']} on (base rates: {margins['name']})",
            "| AU | name | coded | positive | rate | aim |",
            rates,
        ),
        *_table("Made with", "| asset | sha256 |", assets),
        *_table("Parameters", "| name | value |", [f"| {name} | {value} |" for name, value in card["params"].items()]),
        "",
        "## Assumed, not measured",
        "",
        *(f"- {line}" for line in card["assumptions"]),
        *_table("Assumed figures", "| kind | of | value |", _list_figures(card["assumed"])),
        *_list_defects(card["defects"]),
    ]
    return "\n".join(lines) + "\n"


def _list_assumed(margins: Margins) -> dict[str, dict[str, Any]]:
    """The figures of the generator that nobody has measured on the real corpora."""
    return {
        "correlation of latent signals": {f"AU{a:02d} AU{b:02d}": r for (a, b), r in PAIRS.items()},
        "seconds": {
            "over which latent signals are smooth": SMOOTH,
            "time constant of onset": ONSET,
            "time constant of offset": OFFSET,
            "of a rest, from and to": list(margins.rest),
            "between rests, from and to": list(ACTIVE),
        },
        "episodes a minute": list_rates(),
    }


def _list_figures(assumed: dict[str, dict[str, Any]]) -> list[str]:
    return [f"| {kind} | {of} | {value} |" for kind, figures in assumed.items() for of, value in figures.items()]


def _count_people(people: Sequence[Identity]) -> dict[str, Any]:
    tones, ages = Counter(p.tone for p in people), Counter(name_age(p.age) for p in people)
    return {
        "sex": dict(sorted(Counter(p.sex for p in people).items())),
        "tone": {tone: tones[tone] for tone in TONES},
        "age": {group: ages[group] for group in AGE_GROUPS},
        "glasses": sum(wears_glasses(p.seed, p.subject) for p in people),
    }


def name_age(age: float) -> str:
    """The group of an identity's age, which runs from 0 young to 1 old."""
    return AGE_GROUPS[min(2, int(3 * age))]


def _count_aus(made: Sequence[dict[str, Any]], margins: Margins) -> dict[str, Any]:
    numbers = sorted(int(au) for au in made[0]["coded"]) if made else []
    aus = {}
    for au in numbers:
        coded, positive = (sum(counts[kind][str(au)] for counts in made) for kind in ("coded", "positive"))
        aim = margins.aims.get(au)
        aus[f"AU{au:02d}"] = {"coded": coded, "positive": positive, "rate": round(positive / max(coded, 1), 4), "aim": aim}
    return aus


def _describe_aims(margins: Margins) -> str:
    assumed = ", ".join(map(str, margins.assumed))
    return (
        f"Base rates aim at published ones, at an intensity of at least {margins.occurs_at}; those of AUs {assumed} do not."
    )


def _name_au(name: str) -> str:
    return ACTION_UNITS[int(name[2:])].name


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _table(title: str, header: str, rows: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", header, "|" + "---|" * (header.count("|") - 1), *rows]


def _list_defects(damage: dict[str, Any]) -> list[str]:
    if damage["seed"] is None:
        return ["", "No file was damaged."]
    rows = [f"| {d['number']} | {d['defect']} | `{d['path']}` | {d['detail']} |" for d in damage["injected"]]
    tree = ", ".join(f"`{name}`" for name in damage["tree"])
    rest = ", ".join(damage["left_out"]) or "none"
    notes = ["", f"Folders under unusual names (22): {tree}. Kinds for which there were too few recordings: {rest}."]
    return [*_table("Damage done on purpose", "| no. | kind | where | what |", rows), *notes]
