"""Server URLs: all that one says is honoured or refused, and none shows its password."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from bus import checks, conf
from bus.errors import ConfigurationError
from bus.streams.connect import Endpoint
from bus.streams.options import OPTIONS, REFUSED
from bus.streams.url import Credentials, Url, masked, parse
from tests.passwords import BAD_PLACES, GOOD_PLACES, WORDS, is_told
from tests.unit.test_docs import codes, section, tables


def facts(url: str, **credentials: str) -> dict[str, object]:
    """What differs from an address that says nothing."""
    address = parse(url, Credentials(**credentials))
    names = ("hosts", "path", "db", "username", "password", "master", "sentinel_username",
             "sentinel_password", "sentinel_tls", "tls")  # fmt: skip
    return {name: value for name in names if (value := getattr(address, name))}


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://h", {"hosts": (("h", 6379),)}),
        ("redis://h/", {"hosts": (("h", 6379),)}),
        ("redis://h:7/3", {"hosts": (("h", 7),), "db": 3}),
        ("redis://h?db=3", {"hosts": (("h", 6379),), "db": 3}),
        ("redis://h/3?db=3", {"hosts": (("h", 6379),), "db": 3}),
        ("redis://[::1]", {"hosts": (("::1", 6379),)}),
        ("redis://[2001:db8::1]:7/0", {"hosts": (("2001:db8::1", 7),)}),
        ("redis://u:p@h", {"hosts": (("h", 6379),), "username": "u", "password": "p"}),
        ("redis://:p%40s%2Fs%3A%25@h", {"hosts": (("h", 6379),), "password": "p@s/s:%"}),
        ("redis://:p@ss@h", {"hosts": (("h", 6379),), "password": "p@ss"}),
        ("redis://:a:b@h", {"hosts": (("h", 6379),), "password": "a:b"}),
        ("redis://u@h?password=p%26q", {"hosts": (("h", 6379),), "username": "u", "password": "p&q"}),
        ("unix:///run/r.sock", {"path": "/run/r.sock"}),
        ("unix:///run/r.sock?db=2&password=p", {"path": "/run/r.sock", "db": 2, "password": "p"}),
        ("unix://u:p@/run/a%20b.sock", {"path": "/run/a b.sock", "username": "u", "password": "p"}),
        ("embedded:///var/lib/a@b", {"path": "/var/lib/a@b"}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", {"hosts": (("h", 6379),), "tls": {"ssl_cert_reqs": "none"}}),
        ("rediss://h?ssl_cert_reqs=none", {"hosts": (("h", 6379),), "tls": {"ssl_cert_reqs": "none"}}),
        ("rediss://h?ssl_check_hostname=False",
         {"hosts": (("h", 6379),), "tls": {"ssl_check_hostname": False}}),
        ("rediss://h?ssl_min_version=TLSv1.3",
         {"hosts": (("h", 6379),), "tls": {"ssl_min_version": ssl.TLSVersion.TLSv1_3}}),
        ("redis+sentinel://a,b:7,[::1]:8/shop",
         {"hosts": (("a", 26379), ("b", 7), ("::1", 8)), "master": "shop"}),
        ("redis+sentinel://u:p@a/shop/4?sentinel_username=s&sentinel_password=t",
         {"hosts": (("a", 26379),), "master": "shop", "db": 4, "username": "u", "password": "p",
          "sentinel_username": "s", "sentinel_password": "t"}),
        ("rediss+sentinel://a/shop", {"hosts": (("a", 26379),), "master": "shop", "sentinel_tls": True}),
        ("rediss+sentinel://a/shop?sentinel_tls=no", {"hosts": (("a", 26379),), "master": "shop"}),
    ],
)  # fmt: skip
def test_all_that_a_url_says_is_read(url: str, found: dict[str, object]) -> None:
    assert facts(url) == found


BAD = [
    ("nonsense", "must begin with"),
    ("ftp://h", "must begin with"),
    ("redis+cluster://h", "Cluster is not supported"),
    ("redis://", "no host"),
    ("redis:///0", "no host"),
    ("redis://:6379/0", "no host"),
    ("redis://h:0", "port"),
    ("redis://h:99999", "port"),
    ("redis://h:x", "host:port"),
    ("redis://a,b", "several are for redis.sentinel"),
    ("redis://h/abc", "number of the database"),
    ("redis://h/1/2", "number of the database"),
    ("redis://h/-1", "number of the database"),
    ("redis://h/1?db=2", "database is given twice"),
    ("redis://h?db=one", "option db must be a whole number"),
    ("redis://h?db=", "option db"),
    ("redis://h?db=1&db=1", "option db must be given once"),
    ("redis://h?db", "option db must be given once"),
    ("redis://h#1", "#"),
    ("redis://h\n", "line break"),
    ("redis://[::1", "IPv6"),
    ("redis://::1/0", "IPv6"),
    ("redis://:%ff@h", "UTF-8"),
    ("redis://u:p@h?username=v", "username is given twice"),
    ("redis://:p@h?password=q", "password is given twice"),
    ("redis://h?max_connections=5", "max_connections is refused: there is no limit"),
    ("redis://h?timeout=5", r"timeout is refused: use BUS\['TIMEOUT'\]"),
    ("redis://h?socket_timeout=5", r"socket_timeout is refused: use BUS\['TIMEOUT'\]"),
    ("redis://h?decode_responses=True", "decode_responses is refused"),
    ("redis://h?pasword=x", "no option pasword; did you mean password"),
    ("rediss://h?ssl_cert_req=none", "did you mean ssl_cert_reqs"),
    ("redis://h?qqqq=1", "known: db, username"),
    ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs is for rediss://"),
    ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must be required, optional or none"),
    ("rediss://h?ssl_check_hostname=perhaps", "must be yes or no"),
    ("rediss://h?ssl_min_version=SSLv3", "must be TLSv1.2 or TLSv1.3"),
    ("rediss://h?ssl_ciphers=none-such", "selects no cipher"),
    ("rediss://h?ssl_ca_certs=/none/such", "ssl_ca_certs names a file that is not there"),
    ("rediss://h?ssl_ca_path=/none/such", "ssl_ca_path names a directory that is not there"),
    ("rediss://h?ssl_certfile=/none/such", "ssl_certfile names a file that is not there"),
    ("rediss://h?ssl_password=x", "need ssl_certfile"),
    ("unix://tmp/r.sock", "three slashes"),
    ("unix://", "no socket"),
    ("unix:///r.sock?ssl_cert_reqs=none", "is for rediss://"),
    ("unix:///r.sock?socket_keepalive=1", "is for redis://"),
    ("embedded://", "no directory"),
    ("embedded:///d?db=1", "no options"),
    ("redis+sentinel://a,b", "no master"),
    ("redis+sentinel://a,,b/shop", "no host"),
    ("redis+sentinel://a:x/shop", "host:port"),
    ("redis+sentinel://a/shop/x", "number of the database"),
    ("redis+sentinel://a/shop?sentinel_tls=yes", "sentinel_tls is for rediss"),
    ("redis://h?sentinel_password=x", "sentinel_password is for redis"),
]


@pytest.mark.parametrize(("url", "told"), BAD)
def test_what_is_not_understood_is_refused_by_the_system_check(settings, url: str, told: str) -> None:
    settings.BUS = {"URL": url}
    (error,) = checks.check_setting()
    assert error.id == "jitney.E001"
    with pytest.raises(ConfigurationError, match=told):
        parse(url)


def test_credentials_can_stand_beside_the_url() -> None:
    assert facts("redis://h", username="u", password="p") == facts("redis://u:p@h")
    assert facts("redis://u@h", password="p") == facts("redis://u:p@h")
    found = facts("redis+sentinel://a/shop", sentinel_username="s", sentinel_password="t")
    assert (found["sentinel_username"], found["sentinel_password"]) == ("s", "t")


@pytest.mark.parametrize(
    ("url", "more", "told"),
    [
        ("redis://u:p@h", {"password": "p"}, "password is given twice"),
        ("redis://u:p@h", {"username": "u"}, "username is given twice"),
        ("redis://h", {"sentinel_password": "p"}, "SENTINEL_PASSWORD"),
        ("embedded:///d", {"password": "p"}, "no users and passwords"),
    ],
)
def test_credentials_that_contradict_the_url_are_refused(url: str, more: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        parse(url, Credentials(**more))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("place", GOOD_PLACES + BAD_PLACES)
def test_no_text_that_is_made_of_a_url_has_its_password(place: str, word: str) -> None:
    url = place.format(word)
    texts = [masked(url), repr(Url(url))]
    try:
        address = parse(url)
        texts += [repr(address), address.masked, repr(conf.Settings(url=url)), Endpoint(url).safe_url]
    except ConfigurationError as error:
        texts.append(str(error))
    else:
        if place in BAD_PLACES:  # a host, or a path: no password for anybody
            texts = [text for text in texts if "***" in text]
    assert not any(map(is_told, texts)), texts


def test_the_masked_url_says_all_the_rest() -> None:
    assert masked("redis://u:p@h/2?socket_keepalive=no") == "redis://u:***@h:6379/2?socket_keepalive=no"
    assert masked("unix://u:p@/s?db=3") == "unix://u:***@/s?db=3"
    assert masked("redis+sentinel://:p@a,[::1]/m/1?sentinel_password=x") == (
        "redis+sentinel://:***@a:26379,[::1]:26379/m/1?sentinel_password=***"
    )
    assert masked("embedded:///d") == "embedded:///d"


def test_every_option_stands_in_the_document_as_honoured_or_refused() -> None:
    honoured, refused = tables(section("docs/reference/settings.md", "Server URLs"))
    documented = {codes(row[0])[0]: set(codes(row[1])) for row in honoured}
    assert documented == {name: {f"{each}://" for each in schemes} for name, (schemes, _) in OPTIONS.items()}
    assert {name for row in refused for name in codes(row[0])} == set(REFUSED)


def test_files_of_tls_are_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("")
    url = f"rediss://h?ssl_ca_certs={file}&ssl_ca_path={tmp_path}&ssl_certfile={file}&ssl_keyfile={file}"
    assert facts(url)["tls"] == {
        "ssl_ca_certs": str(file),
        "ssl_ca_path": str(tmp_path),
        "ssl_certfile": str(file),
        "ssl_keyfile": str(file),
    }
