"""The page at `/docs`, made from the OpenAPI document. It runs no script and loads nothing from elsewhere.

FastAPI's own page takes scripts from a content delivery network, on the origin whose tab holds the token.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the page: each path with what it takes and answers, then each type."""
    info = openapi["info"]
    paths = [
        _operation(path, method, about)
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    ]
    types = [
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_block(schema)}</details>'
        for name, schema in openapi["components"]["schemas"].items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>broadfast: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="page/page.css"></head><body><main>'
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}"
        ' The same as <a href="openapi.json">OpenAPI</a>, for programs.</p>'
        f"<h2>Paths</h2>{''.join(paths)}<h2>Types</h2>{''.join(types)}</main></body></html>"
    )


def _operation(path: str, method: str, about: dict[str, Any]) -> str:
    locked = " Needs a token." if about.get("security") else ""
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    takes = f"<p>Takes {_reference(body)}.</p>" if body else ""
    given = "".join(
        f"<li><code>{escape(one['name'])}</code> {_block(one['schema'])}</li>" for one in about.get("parameters", ())
    )
    answers = "".join(
        f"<li>{status}: {escape(answer['description'])}{_answered(answer)}</li>"
        for status, answer in about["responses"].items()
    )
    return (
        f"<section><h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(about.get('summary', ''))}.{locked}"
        f"</p>{takes}<ul>{given}</ul><ul>{answers}</ul></section>"
    )


def _answered(answer: dict[str, Any]) -> str:
    schemas = [content.get("schema", {}) for content in answer.get("content", {}).values()]
    return f", {_reference(schemas[0])}" if schemas and "$ref" in schemas[0] else ""


def _reference(schema: dict[str, Any]) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' if name else _block(schema)


def _block(schema: Any) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
