"""Compares our prompt with a short one on judged pairs, and an engine behind an address with one in the process.

`--prompts` asks a model about equally many pairs per label of the Shopping Queries Data Set (us) and of Chorus: with
the short prompt (`short_prompt.toml`, a line for each label and one line of reasoning) and with the one of stage 7,
which shows `--examples` worked examples (`judge.few_shot`). A pair without a verdict counts as wrong, with equal
probabilities. An answer is kept if its verdict is right and the default filters have no objection. Soft labels are
compared as they come and, as stage 7 makes them, at a temperature, fitted here on other queries. Intervals are of
resampled queries. Start it again to go on after an interruption.

`--address` answers stage 7's prompts about pairs of the catalogue with vLLM in the process and with `vllm serve` on
loopback, both with the same engine.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from asking_arms import SCHEMES, answer, recorded
from results import RESULTS, Figure, in_own_process, write_results

from cluster.base.stage_folder import read_json, write_json
from distill.metrics import interval, label_metrics, paired_bootstrap
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.temperature import GROUPS, fit_temperature, scaled
from mpcot.votes import distribution, majority

RESAMPLES, CONFIDENCE = 2000, 95
ADDITIVE = ("accuracy", "log_loss", "calibrated_log_loss", "kept", "output_tokens")
Row = dict[str, Any]


def judged(answers: Sequence[Row], scheme: Scheme) -> Row:
    """Return what one or more answers to a pair are worth together: label, and the figures of the pair."""
    gold = answers[0]["gold"]
    said = [row for row in answers if row["verdict"] is not None]
    soft = [distribution(row["logprobs"], row["verdict"], scheme) for row in said]
    label = majority([row["verdict"] for row in said], soft, scheme)[0] if said else another(gold, scheme)
    shares = np.mean(soft, axis=0) if said else np.full(len(scheme.codes), 1 / len(scheme.codes))
    return {
        "pair": answers[0]["pair"],
        "query": answers[0]["query"],
        "gold": gold,
        "label": label,
        "accuracy": float(label == gold),
        "log_loss": float(-np.log(max(shares[scheme.index(gold)], 1e-9))),
        "shares": shares,
        "kept": fmean(row["verdict"] == gold and row["objection"] is None for row in answers),
        "output_tokens": sum(row["output_tokens"] for row in answers),
    }


def another(label: str, scheme: Scheme) -> str:
    """Return a label that is wrong, for a pair without a verdict."""
    return scheme.codes[scheme.index(label) - 1]


def calibrated(pairs: list[Row], scheme: Scheme) -> list[Row]:
    """Return the pairs with the log-loss after a temperature, which is fitted on the queries of the other groups."""
    shares = np.array([row["shares"] for row in pairs])
    gold = np.array([scheme.index(row["gold"]) for row in pairs])
    group = np.unique([row["query"] for row in pairs], return_inverse=True)[1] % GROUPS
    for held in range(GROUPS):
        (own,) = np.nonzero(group == held)
        temperature = fit_temperature(gold[group != held], shares[group != held]) or 1.0
        right = scaled(shares[own], temperature)[np.arange(len(own)), gold[own]] if len(own) else ()
        for row, chance in zip(own, right, strict=True):
            pairs[row]["calibrated_log_loss"] = float(-np.log(max(chance, 1e-9)))
    return pairs


def by_judge(answers: Sequence[Row], scheme: Scheme) -> dict[str, list[Row]]:
    """Return the pairs as each perspective alone judges them, and as their vote does, in one order."""
    names = list(dict.fromkeys(row["perspective"] for row in answers))
    pairs = sorted({row["pair"] for row in answers})
    at = {(row["pair"], row["perspective"]): row for row in answers}
    asked = {name: [name] for name in names} | {"vote": names}
    return {
        judge: calibrated([judged([at[pair, name] for name in own], scheme) for pair in pairs], scheme)
        for judge, own in asked.items()
    }


def gain(short: Sequence[Row], ours: Sequence[Row], name: str) -> dict[str, float]:
    """Return the mean difference of a figure, ours minus short, with its interval over resampled queries."""
    queries, query = np.unique([row["query"] for row in ours], return_inverse=True)
    difference = np.array([b[name] - a[name] for a, b in zip(short, ours, strict=True)])
    sums, counts = np.bincount(query, difference), np.bincount(query)
    chance = np.full(len(queries), 1 / len(queries))
    weights = np.random.default_rng(0).multinomial(len(queries), chance, size=RESAMPLES)
    return interval(float(difference.mean()), (weights @ sums) / (weights @ counts), CONFIDENCE / 100)


def table_rows(
    data: str, judge: str, short: Sequence[Row], ours: Sequence[Row], scheme: Scheme | None
) -> Iterator[Row]:
    """Yield a row for each prompt, and one of the gains. Macro-F1 needs the labels of one scheme."""
    gold, queries = ([row[name] for row in ours] for name in ("gold", "query"))
    said = {name: [row["label"] for row in rows] for name, rows in (("short", short), ("ours", ours))}
    head = {"data": data, "judge": judge, "pairs": len(ours)}
    for prompt, rows in (("short", short), ("ours", ours)):
        means = {name: fmean(map(itemgetter(name), rows)) for name in ADDITIVE}
        macro = {"macro_f1": label_metrics(gold, said[prompt])["macro_f1"]} if scheme else {}
        yield head | {"row": prompt} | means | macro
    gains = {name: gain(short, ours, name) for name in ADDITIVE}
    if scheme:
        gains["macro_f1"] = paired_bootstrap(
            gold, said["short"], said["ours"], queries, scheme, "macro_f1", RESAMPLES, confidence=CONFIDENCE / 100
        )
    for part in ("difference", "low", "high"):
        yield head | {"row": part} | {name: found[part] for name, found in gains.items()}


def compare(answers: dict[str, list[Row]]) -> list[Row]:
    """Return the table: each set and all together, each perspective and the vote."""
    pooled: dict[tuple[str, str], list[Row]] = {}
    rows: list[Row] = []
    for data, given in answers.items():
        scheme = load_scheme(SCHEMES[data])
        sides = [by_judge([row for row in given if row["prompt"] == side], scheme) for side in ("short", "ours")]
        for judge in sides[0]:
            rows += table_rows(data, judge, sides[0][judge], sides[1][judge], scheme)
            for side, judges in zip(("short", "ours"), sides, strict=True):
                pooled.setdefault((judge, side), []).extend(judges[judge])
    if len(answers) > 1:
        for judge in {judge: None for judge, _ in pooled}:
            rows += table_rows("pooled", judge, pooled[judge, "short"], pooled[judge, "ours"], None)
    return rows


def prompt_figures(part: str, rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield the gains of the vote: points of accuracy and of the share kept, and nats of log-loss that are saved.

    Args:
        part: begins their names.
    """
    votes = {(row["data"], row["row"]): row for row in rows if row["judge"] == "vote"}
    sets = list(dict.fromkeys(data for data, _ in votes))
    for data in sets:
        end = "" if data == sets[-1] else f"_{data}"
        low, middle, high = (votes[data, part] for part in ("low", "difference", "high"))
        for name, unit, factor in (
            ("accuracy_gain_points", "points of accuracy", 100),
            ("log_loss_gain", "nats saved", -1),
            ("calibrated_log_loss_gain", "nats saved after a temperature of other queries", -1),
            ("kept_gain_points", "points of the share kept", 100),
        ):
            column = name.partition("_gain")[0]
            bounds = sorted(factor * side[column] for side in (low, high))
            told = f"{unit}, {data} (interval {bounds[0]:.2f} to {bounds[1]:.2f})"
            yield figure(f"{part}_{name}{end}", factor * middle[column], told)


def address_figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield the speed behind the address over the speed in the process."""
    speeds = {row["arm"]: row["output_tokens_per_s"] for row in rows}
    yield figure("address_over_in_process", speeds["address"] / speeds["in process"], "ratio of output tokens/s")


def figure(name: str, value: float, unit: str) -> Figure:
    """Return the figure with the goal that its name has."""
    if name.startswith("address"):
        return Figure(name, value, unit, at_least=0.9)
    return Figure(name, value, unit, above=None if "kept" in name else 0)


def write(part: str, figures: Sequence[Figure], rows: Sequence[Row]) -> None:
    """Write what a part has found, beside what the other part found earlier."""
    told, raw = RESULTS / "asking.json", RESULTS / "asking.csv"
    earlier = read_json(told)["figures"] if told.exists() else []
    others = [figure(f["name"], f["value"], f["unit"]) for f in earlier if not f["name"].startswith(part)]
    lines = raw.read_text(encoding="utf-8").splitlines() if raw.exists() else []
    table = [row for row in csv.DictReader(lines) if row["part"] != part] + [{"part": part} | row for row in rows]
    columns = list(dict.fromkeys(name for row in table for name in row))
    write_results("asking", [*others, *figures], [dict.fromkeys(columns) | row for row in table])


def compare_prompts(given: argparse.Namespace) -> None:
    """Ask about each data set in a process of its own, and write what is found."""
    paths = {data: path for data in SCHEMES if (path := getattr(given, data))}
    if given.arm:
        write_json(given.told, answer(given.arm, paths[given.arm], given.model, given.pairs, given.examples))
        return
    asked = ("--model", given.model, "--pairs", given.pairs, "--examples", given.examples)
    own = partial(in_own_process, __file__, "--prompts", *asked)
    asked_of = {data: own(f"--{data}", path, "--arm", data)["asked"] for data, path in paths.items()}
    known = recorded()
    rows = compare({data: [known[one["key"]] | one for one in wanted] for data, wanted in asked_of.items()})
    part = "examples" if given.examples else "prompt"
    write(part, list(prompt_figures(part, rows)), rows)


def compare_engines(given: argparse.Namespace) -> None:
    """Run both arms in processes of their own, and write what is found."""
    from asking_address import ARMS, run_arm

    if given.arm:
        write_json(given.told, run_arm(given.arm, given.model, given.pairs))
        return
    own = partial(in_own_process, __file__, "--address", "--model", given.model, "--pairs", given.pairs)
    rows = [own("--arm", arm) for arm in ARMS]
    write("address", list(address_figures(rows)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument("--prompts", action="store_true", help="compare the prompts")
    part.add_argument("--address", action="store_true", help="compare the engines")
    parser.add_argument("--model", required=True, help="folder of a chat model")
    parser.add_argument("--esci", help="jsonl file of the Shopping Queries Data Set")
    parser.add_argument("--chorus", help="folder of Chorus")
    parser.add_argument("--pairs", type=int, help="150 of each data set, or 32 of the catalogue with --address")
    parser.add_argument("--examples", type=int, default=0, help="worked examples that our prompt shows")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.pairs = given.pairs or (150 if given.prompts else 32)
    if given.prompts and not (given.esci or given.chorus):
        parser.error("--prompts needs --esci or --chorus")
    (compare_prompts if given.prompts else compare_engines)(given)


if __name__ == "__main__":
    main()
