"""Says in one text what is known of a product beside its title and brand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attributes_text(product: Mapping[str, Any]) -> str:
    """Return the attributes as "name: value; name: value", from a mapping or the pairs of an Arrow map."""
    return "; ".join(f"{name}: {value}" for name, value in dict(product.get("attributes") or ()).items())


def details(product: Mapping[str, Any]) -> str:
    """Return attributes, description and bullet points as one text, in this order, as attributes say most per word."""
    attributes = attributes_text(product)
    parts = (attributes and f"{attributes}.", product.get("description"), product.get("bullets"))
    return " ".join(part for part in parts if part)
