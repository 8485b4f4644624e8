"""What the exported files lose to the adapter, on the items that the checkpoint was chosen on."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from slm_judge.model_card.page import interval, number

from slm_judge.agreement.parts import all_parts
from slm_judge.artefact.locate import DEFAULT_FILE, default_text
from slm_judge.data.item import load_split, sample_rows, votes_of
from slm_judge.files import finite, write_json, write_text
from slm_judge.run import Run
from slm_judge.screen import Sheet, say

from .answers import against_annotators, between, hear, losses
from .artefacts import ADAPTER, artefacts
from .decide import checks
from .gguf import MOVED

REPORT = "export.json"
ITEMS = 300
"""Most validation items: an export is not to take longer than a training."""
KEPT, LOST = 0.97, 0.01
"""If people are to get a file by default: the share of the adapter's labels that it keeps, and the
alpha that it is not shown to lose more of, in each dimension."""


def tell_cost(run: Run, console: Console) -> dict[str, Any]:
    """Ask every artefact about validation items, write `report/export.json`, and print it.

    Test items are left for `slm-judge verify`, by which nothing may be chosen.

    Returns:
        What was written: per dimension and artefact, how alike its answers are to the adapter's.
    """
    items = load_split(run.data, "validation")
    items = [items[row] for row in sample_rows(len(items), ITEMS, run.recipe().training.seed)]
    heard = hear(artefacts(run), items, "asking", console)
    groups = [item.group for item in items]
    margin, dimensions = run.recipe().verify.max_alpha_loss, dict[str, Any]()
    for part in all_parts(run.rubric().dimensions):
        dimension, votes = part.dimension, part.votes_of(votes_of(items, part.source))
        judged = {n: part.labels(one.labels(part.source)).tolist() for n, one in heard.items()}
        lost = losses(judged, votes, dimension, margin, groups)
        dimensions[dimension.name] = {
            name: {
                **against_annotators(labels, votes, dimension),
                **({} if name == ADAPTER else {
                    "between": between(part, heard[ADAPTER], heard[name], groups),
                    "change": lost[name],
                }),
            }
            for name, labels in judged.items()
        }  # fmt: skip
    report: dict[str, Any] = finite({"items": len(items), "dimensions": dimensions})
    write_json(run.report / REPORT, report)
    cost_table(report).show(console)
    say(console, remedies(run, report))
    say(console, choose_default(run, report))
    return report


def choose_default(run: Run, report: Mapping[str, Any]) -> list[str]:
    """Write which GGUF file people get who do not choose, and say so in words.

    The smallest that keeps the adapter's answers; where none does, the one that keeps most labels.
    """
    settings, dimensions = run.recipe().export, report["dimensions"]
    names = sorted(settings.gguf, key=lambda name: run.gguf_file(name).stat().st_size)

    equal = dict.fromkeys(names, 0.0)  # of the dimension with fewest
    for name in names:
        shares = (d[name]["between"]["agreement"] for d in dimensions.values())
        equal[name] = min((share for share in shares if share is not None), default=0.0)

    def keeps(name: str) -> bool:
        shown = [d[name]["change"]["high"] for d in dimensions.values()]
        return equal[name] >= KEPT and all(high is None or high >= -LOST for high in shown)

    kept = next(filter(keeps, names), None)
    chosen = settings.default or kept or max(names, key=equal.__getitem__)
    write_text(run.gguf / DEFAULT_FILE, default_text(chosen))
    if len(names) == 1:
        return []
    why = "as the recipe says" if settings.default else (
        "the smallest that keeps the adapter's answers" if kept else
        f"which keeps most of the adapter's labels; no file keeps {KEPT:.0%} of every dimension's"
    )  # fmt: skip
    of = ", ".join(f"{name} {share:.3f}" for name, share in equal.items())
    return [f"By default people get {chosen}, {why} (equal labels, of the dimension with fewest: "
            f"{of}). Any other is theirs with quantization=."]  # fmt: skip


def cost_table(report: Mapping[str, Any]) -> Sheet:
    """What each file loses, per dimension."""
    table = Sheet(
        f"What the files lose to the adapter, on {report['items']} validation items",
        ("alpha", "change", "= adapter"),
        "change: of alpha against the annotators, with a 90 % interval; = adapter: share of "
        "equal labels",
    )
    for dimension, systems in report["dimensions"].items():
        table.group(dimension)
        for name, found in systems.items():
            change = interval(found["change"], 3) if "change" in found else ""
            equal = number(found["between"]["agreement"], 3) if change else ""
            table.add(name, number(found["alpha"], 3), change, equal)
    return table


def remedies(run: Run, report: Mapping[str, Any]) -> list[str]:
    """What can be done where a file loses more than `verify` allows, in words."""
    thresholds, losing = run.recipe().verify, dict[str, None]()
    for dimension, systems in report["dimensions"].items():
        annotated = systems[ADAPTER]["alpha"] is not None
        for name, found in systems.items():
            if name == ADAPTER:
                continue
            lost, alike = found["change"] if annotated else None, found["between"]
            checked = checks(dimension, name, alike, lost, report["items"], thresholds)
            if any(check.may_fail for check in checked):
                losing[name] = None
    if not losing:
        return []
    recipe, helps = run.recipe(), list[str]()
    settings = recipe.export
    rounded = losing.keys() - ({"bnb-4bit"} if recipe.keeps_adapter else set())
    if "bnb-4bit" in rounded:
        whole = "takes the answers of the adapter along whole"
        helps.append(
            f"`export.bnb: adapter`, which {whole}"
            if recipe.quantization == "nf4"
            else f"train with `quantization: nf4`: the bitsandbytes file {whole} then"
        )
    more = [name for name in ("self_attn.v_proj", "down_proj") if name not in settings.bnb_16bit]
    if "bnb-4bit" in rounded and more:
        layers = ", ".join([*settings.bnb_16bit, *more])
        helps.append(f"keep more layers in 16 bits (`export.bnb_16bit: [{layers}]`)")
    coarse = [name for name in losing if name.startswith(("Q2", "Q3", "Q4", "IQ"))]
    if coarse and not MOVED.keys() & set(settings.gguf):
        helps.append(f"add {', '.join(MOVED)} to `export.gguf`, for which the weights are moved")
    if "Q8_0" not in settings.gguf:
        helps.append("add Q8_0 to `export.gguf`: twice the bytes, and hardly a loss")
    if rounded:
        helps.append(f"raise `export.rounding_tokens` (now {settings.rounding_tokens})")
    helps.append("train longer: what is learned with small margins falls first")
    return [f"{', '.join(losing)} may be refused by `slm-judge verify`. Remedies: "
            + "; or ".join(helps) + "."]  # fmt: skip
