"""`celery inspect` of a real worker whose server URL has a password: it shows everything else."""

from __future__ import annotations

import socket

import pytest

from bus.streams.embedded import EmbeddedServer
from tests import nursery
from tests.acceptance.shopping import Shop


@pytest.mark.timeout(150)
@pytest.mark.parametrize("beside", [False, True], ids=["in the url", "beside the url"])
def test_settings_and_connections_of_a_worker_are_shown_without_its_password(
    own_shop: Shop, own_server: EmbeddedServer, beside: bool
) -> None:
    # Given a worker that logs in to its server, which is its broker too
    own_shop.bus.client.call("ACL", "SETUSER", "shop", "on", ">Sesame", "~*", "&*", "+@all")
    path = own_server.url.removeprefix("unix://")
    login = {"BUS_USERNAME": "shop", "BUS_PASSWORD": "Sesame", "BUS_URL": own_server.url}
    own_shop.environment |= login if beside else {"BUS_URL": f"unix://shop:Sesame@{path}"}
    own_shop.worker("one", "-c", "2", chatty=True).wait_ready()
    # When somebody asks it
    worker = f"one@{socket.gethostname()}"
    ask = ["-m", "celery", "-A", "workers", "inspect", "--timeout", "20", "-d", worker, "--json"]
    answers = [nursery.run([*ask, command], own_shop.environment) for command in ("conf", "stats", "report")]
    # Then
    assert "Sesame" not in "".join(answers)
    assert "unix://***:***@" in answers[0] or beside
    assert "redis+socket://***:***@" in answers[1]
