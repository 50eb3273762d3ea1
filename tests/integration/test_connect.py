"""What a server URL says is what happens: TLS, users, databases, sentinels; on real servers."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import kombu
import pytest

from bus.errors import BusUnavailable
from bus.streams.connect import Client, Endpoint
from bus.streams.embedded import EmbeddedServer
from bus.streams.url import Credentials, parse
from tests import ending
from tests.certificates import Certificates
from tests.servers import program
from tests.waiting import wait_until
from workers.broker_settings import broker_settings

Make = Callable[..., EmbeddedServer]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["valkey", "redis7"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Starts servers of a family with more options."""
    binary = program("Redis (redis-server)", "redis-server") if request.param == "redis7" else None
    made: list[EmbeddedServer] = []

    def start(config: dict[str, str], port: int | None = None) -> EmbeddedServer:
        made.append(EmbeddedServer(tmp_path / f"{len(made)}", binary=binary, config=config, port=port))
        return made[-1].start()

    yield start
    for server in made:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(url: str, credentials: Credentials | None = None, *command: str) -> object:
    client = Client(Endpoint(parse(url, credentials), timeout=5))
    try:
        return client.call(*(command or ("PING",)))
    finally:
        client.close()


def refusal(url: str, credentials: Credentials | None = None) -> str:
    with pytest.raises(BusUnavailable) as caught:
        answer(url, credentials)
    return str(caught.value)


# ---------------------------------------------------------------------- TLS: the Valkey of pip has none


@pytest.fixture
def make_tls(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], EmbeddedServer]]:
    """Starts the server of the distribution with more options."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(
            EmbeddedServer(
                tmp_path / "tls", binary=program("Redis (redis-server)", "redis-server"), config=config
            )
        )


def test_a_certificate_is_checked_as_the_url_says(make_tls, certificates: Certificates) -> None:
    port = free_port()
    make_tls(certificates.server_config(port))
    trusted = f"ssl_ca_certs={certificates['ca.pem']}"

    assert answer(f"rediss://127.0.0.1:{port}?{trusted}") == b"PONG"
    assert answer(f"rediss://[::1]:{port}?{trusted}") == b"PONG"
    assert answer(f"rediss://localhost:{port}?{trusted}&ssl_min_version=TLSv1.3") == b"PONG"
    assert answer(f"rediss://localhost:{port}?{trusted}&ssl_ciphers=ECDHE-RSA-AES256-GCM-SHA384") == b"PONG"
    assert answer(f"rediss://localhost:{port}?ssl_cert_reqs=CERT_NONE") == b"PONG"
    # an authority that nobody knows; a name that the certificate does not have
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"rediss://localhost:{port}")
    other_name = f"rediss://127.0.0.2:{port}?{trusted}"
    assert "127.0.0.2" in refusal(other_name)
    # no TLS where the server wants it
    assert refusal(f"redis://localhost:{port}")


def test_a_name_that_the_certificate_does_not_have_is_refused_unless_the_url_allows_it(
    make_tls, certificates: Certificates
) -> None:
    port = free_port()
    make_tls({**certificates.server_config(port), "bind": "127.0.0.2"})
    url = f"rediss://127.0.0.2:{port}?ssl_ca_certs={certificates['ca.pem']}"
    assert "certificate is not valid for" in refusal(url) or "doesn't match" in refusal(url)
    assert answer(f"{url}&ssl_check_hostname=no") == b"PONG"


def test_a_server_that_wants_a_certificate_gets_it(make_tls, certificates: Certificates) -> None:
    port = free_port()
    make_tls(certificates.server_config(port, clients="yes"))
    url = f"rediss://localhost:{port}?ssl_ca_certs={certificates['ca.pem']}"
    ours = f"{url}&ssl_certfile={certificates['client.pem']}"
    assert refusal(url)
    assert answer(f"{ours}&ssl_keyfile={certificates['client.key']}") == b"PONG"
    assert answer(f"{ours}&ssl_keyfile={certificates['locked.key']}&ssl_password=Sesame") == b"PONG"
    wrong = refusal(f"{ours}&ssl_keyfile={certificates['locked.key']}&ssl_password=Mustard")
    assert "Mustard" not in wrong


# ---------------------------------------------------------------------- users and databases


def test_user_password_and_database_are_those_of_the_url(make: Make) -> None:
    server = make({}, port=0)
    answer(server.url, None, "ACL", "SETUSER", "shop", "on", ">p@ss/w:rd%?", "~*", "+@all")
    address = server.url.removeprefix("redis://").removesuffix("/0")
    word = "p%40ss%2Fw%3Ard%25%3F"
    path = server._site.socket
    for url in (
        f"redis://shop:{word}@{address}/3",
        f"redis://shop:{word}@{address}?db=3",
        f"redis://{address}/3?username=shop&password={word}",
        f"unix://shop:{word}@{path}?db=3",
        f"unix://{path}?db=3&username=shop&password={word}",
    ):
        facts = answer(url, None, "CLIENT", "INFO").decode()
        assert "user=shop" in facts, url
        assert "db=3" in facts, url
        assert "name=jitney" in facts, url
    beside = Credentials(username="shop", password="p@ss/w:rd%?")  # type: ignore[arg-type]
    assert b"user=shop" in answer(f"redis://{address}/3", beside, "CLIENT", "INFO")
    # and Celery finds the same
    for url in (f"redis://shop:{word}@{address}/3", f"unix://shop:{word}@{path}?db=3"):
        assert "user=shop" in (told := broker_client_info(url)), told
        assert "db=3" in told


def broker_client_info(url: str) -> str:
    """What the server says of a connection that kombu makes as the stand-alone worker would."""
    found = broker_settings(parse(url))
    with kombu.Connection(
        found["broker_url"], ssl=found.get("broker_use_ssl"),
        transport_options=found.get("broker_transport_options"),
    ) as connection:  # fmt: skip
        assert "Sesame" not in connection.as_uri()
        info = connection.default_channel.client.client_info()
        return " ".join(f"{name}={value}" for name, value in info.items())


@pytest.mark.both_servers
def test_what_the_server_refuses_is_told_without_what_it_was_given(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    path = own_server._site.socket
    assert "without any password configured" in refusal(f"unix://:Sesame@{path}")
    assert "WRONGPASS" in refusal(f"unix://shop:Sesame@{path}")
    assert "DB index" in refusal(f"unix://{path}?db=99")
    # a server that does not know AUTH quotes what it was given
    file = tmp_path / "renamed.conf"
    file.write_text("rename-command AUTH none-such")
    own_server._config |= {"include": str(file)}
    own_server.restart()
    told = refusal(f"unix://:Sesame@{path}")
    assert "unknown command" in told
    assert "Sesame" not in told


# ---------------------------------------------------------------------- sentinels


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Callable[[str, str], int]]:
    """Starts a sentinel with these lines of configuration; gives its port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(lines: str, tls: str = "") -> int:
        port = free_port()
        directory = tmp_path / f"sentinel-{len(started)}"
        directory.mkdir()
        file = directory / "sentinel.conf"
        listen = f"port 0\ntls-port {port}\n{tls}" if tls else f"port {port}"
        file.write_text(f"{listen}\ndir {directory}\n{lines}\n")
        command = [program("Redis (redis-server)", "redis-server"), str(file), "--sentinel"]
        with (directory / "log").open("wb") as log:
            started.append(subprocess.Popen(ending.with_tests(command), stdout=log, stderr=log))
        wait_until(lambda: listens(port), 20, "the sentinel")
        return port

    yield start
    for process in started:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sentinels_and_servers_have_passwords_of_their_own(make: Make, sentinel) -> None:
    server = make({"requirepass": "Sesame1"}, port=0)
    port = server.url.removesuffix("/0").rpartition(":")[2]
    watch = f"sentinel monitor shop 127.0.0.1 {port} 1\nsentinel auth-pass shop Sesame1"
    there = sentinel(f"{watch}\nrequirepass Sesame2")
    wait_until(lambda: knows_master(there, "Sesame2"), 20, "the sentinel to know the master")
    # the first of the two is not there
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{there}"

    url = f"redis+sentinel://:Sesame1@{hosts}/shop/2?sentinel_password=Sesame2"
    assert b"db=2" in answer(url, None, "CLIENT", "INFO")
    beside = Credentials(password="Sesame1", sentinel_password="Sesame2")  # type: ignore[arg-type]
    assert answer(f"redis+sentinel://{hosts}/shop", beside) == b"PONG"
    assert "db=2" in broker_client_info(url)
    # and where one is missing, or the master unknown, that is told
    assert "NOAUTH" in refusal(f"redis+sentinel://:Sesame1@{hosts}/shop")
    assert "NOAUTH" in refusal(f"redis+sentinel://{hosts}/shop?sentinel_password=Sesame2")
    unknown = refusal(f"redis+sentinel://:Sesame1@{hosts}/store?sentinel_password=Sesame2")
    assert "No such master" in unknown
    assert "Sesame" not in unknown


def knows_master(port: int, password: str) -> bool:
    url = f"redis://:{password}@127.0.0.1:{port}"
    return b"master" in answer(url, None, "SENTINEL", "MASTER", "shop")


def test_sentinels_and_servers_are_reached_with_tls(make_tls, sentinel, certificates: Certificates) -> None:
    master = free_port()
    config = certificates.server_config(master)
    make_tls({**config, "requirepass": "Sesame1"})
    keys = "\n".join(f"{name} {value}" for name, value in config.items() if name.startswith("tls-c"))
    keys += f"\ntls-key-file {config['tls-key-file']}\ntls-auth-clients no\ntls-replication yes"
    watch = f"sentinel monitor shop 127.0.0.1 {master} 1\nsentinel auth-pass shop Sesame1"
    there = sentinel(watch, keys)
    trusted = f"ssl_ca_certs={certificates['ca.pem']}"
    url = f"rediss+sentinel://:Sesame1@localhost:{there}/shop?{trusted}"
    wait_until(lambda: answers(url), 20, "the sentinel to know the master")
    assert answer(url) == b"PONG"
    assert "db=0" in broker_client_info(url)
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"rediss+sentinel://:Sesame1@localhost:{there}/shop")
    # sentinels without TLS before a server with it
    plain = sentinel(f"{watch}\n{keys}")
    mixed = f"rediss+sentinel://:Sesame1@localhost:{plain}/shop?{trusted}&sentinel_tls=no"
    wait_until(lambda: answers(mixed), 20, "the sentinel to know the master")
    assert answer(mixed) == b"PONG"
    assert "db=0" in broker_client_info(mixed)


def answers(url: str) -> bool:
    try:
        return answer(url) == b"PONG"
    except BusUnavailable:
        return False
