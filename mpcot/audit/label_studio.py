"""Tasks for Label Studio, with the perspectives' label as a prediction, and the labelling interface for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cluster.base.stage_folder import write_json
from cluster.base.whole_files import whole_file

TASKS, INTERFACE = "tasks.json", "label-studio.xml"
LABEL, PRODUCT = "label", "product"  # the names of the choice and of what it is about


def write_tasks(found: Mapping[str, Any], folder: Path) -> Path:
    """Write the tasks and the interface into the folder and return the path of the tasks.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    with whole_file(folder / INTERFACE) as partial:
        partial.write_text(interface(found["scheme"]), encoding="utf-8")
    write_json(folder / TASKS, [task(pair, found["model"]) for pair in found["disputes"]])
    return folder / TASKS


def task(pair: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return one task in Label Studio's JSON form. `data` has all that an import needs to know the pair again."""
    choice = {"from_name": LABEL, "to_name": PRODUCT, "type": "choices", "value": {"choices": [pair["verdict"]]}}
    shown = {name: pair[name] for name in ("pair_id", "query", "product_id", "locale", "gold")}
    shown[PRODUCT] = "\n".join(pair[name] for name in ("title", "brand", "details") if pair[name])
    shown["rationales"] = "\n".join(f"{name}: {said}" for name, said in pair["rationales"].items() if said)
    return {
        "data": shown,
        "predictions": [{"model_version": model, "score": round(pair["score"], 4), "result": [choice]}],
    }


def interface(scheme: Mapping[str, Any]) -> str:
    """Return the labelling interface: query, product, rationales, and one choice per label."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value="$query")
    for name in (PRODUCT, "rationales"):
        ElementTree.SubElement(view, "Text", name=name, value=f"${name}")
    choices = ElementTree.SubElement(view, "Choices", name=LABEL, toName=PRODUCT, choice="single", showInline="true")
    for label in scheme["labels"]:
        ElementTree.SubElement(choices, "Choice", value=label["code"], hint=f"{label['name']}: {label['meaning']}")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
