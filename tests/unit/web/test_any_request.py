"""Any request that fits the API's description, and many that do not, get an answer that fits it."""

import schemathesis
from hypothesis import HealthCheck, settings
from tests.unit.web.cast import Seen

from atoll.web.admin import Admin
from atoll.web.app import application
from atoll.web.stream import Stream


class Nobody:
    """An operator that nobody can be: no request here is signed."""


def described():
    seen = Seen.new()
    peers = seen.gather(3)
    seen.commit_round(*peers)
    admin = Admin(Nobody(), token="f" * 64)
    app = application(seen.board, Stream(seen.board), admin)
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    return schema.exclude(path="/api/v1/stream")  # it has no end


@described().parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_answer_is_one_that_is_described(case):
    case.call_and_validate()
