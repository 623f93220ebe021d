"""Made-up requests over the OpenAPI document: whatever comes, the answer is one that the document names, and no 5xx."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.config import LimitSettings, ServeSettings
from serve.http.routes import make_api
from tests.helpers.echo_service import Echo

# Small limits: requests beyond them are then short, too.
LIMITS = LimitSettings(
    products_per_request=3, query_chars=40, title_chars=40, description_chars=40, document_chars=40, body_bytes=4000
)
API = schemathesis.openapi.from_asgi("/openapi.json", make_api(Echo(), ServeSettings(limits=LIMITS)))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@API.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_with_a_fault(case):
    case.call_and_validate(checks=CHECKS)
