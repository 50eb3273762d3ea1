"""The BUS setting: wrong ones are errors that say what, where and how to mend it."""

from __future__ import annotations

import math

import pytest

from bus import conf
from bus.errors import ConfigurationError

URL = "redis://localhost:6379/0"


def settings(**values) -> conf.Settings:
    return conf.from_mapping({"URL": URL, **values})


def test_only_the_url_is_needed():
    found = settings()
    assert (found.url, found.prefix, found.timeout, found.groups) == (URL, "bus", 5.0, None)
    assert found.max_message_bytes == 1024 * 1024


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("PREFFIX", "PREFIX"), ("url", "URL"), ("timeout", "TIMEOUT"), ("MAX_MESAGE_BYTES", "MAX_MESSAGE_BYTES"),
     ("GROUP", "GROUPS"), ("DEDUP_WINDOW", "DEDUPE_WINDOW")],
)  # fmt: skip
def test_an_unknown_key_is_an_error_that_names_the_nearest(wrong, right):
    with pytest.raises(ConfigurationError, match=f"unknown key '{wrong}'. Did you mean '{right}'"):
        settings(**{wrong: 1})


def test_a_key_that_is_like_nothing_gets_the_whole_list():
    with pytest.raises(ConfigurationError, match=r"Known keys: URL, USERNAME, PASSWORD"):
        settings(QQQQ=1)


@pytest.mark.parametrize("mapping", [{}, {"URL": ""}, {"URL": None}, {"PREFIX": "x"}])
def test_without_a_url_the_error_gives_an_example(mapping):
    with pytest.raises(ConfigurationError, match=r"BUS\['URL'\] is missing: .*redis://localhost"):
        conf.from_mapping(mapping)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("URL", 7),
        ("URL", b"redis://:Sesame@h"),
        ("USERNAME", 7),
        ("PASSWORD", b"Sesame"),
        ("READ_ONLY", 1),
        ("READ_ONLY", "yes"),
        ("PREFIX", "a b"),
        ("PREFIX", "a:b"),
        ("TIMEOUT", 0),
        ("TIMEOUT", "5"),
        ("TIMEOUT", True),
        ("TIMEOUT", math.nan),
        ("TIMEOUT", math.inf),
        ("TIMEOUT", 1e12),  # more than a socket can wait
        ("MAX_MESSAGE_BYTES", 0),
        ("DEDUPE_WINDOW", -1),
        ("DEDUPE_WINDOW", 1.5),  # the server would refuse it at the first publish
        ("DEDUPE_WINDOW", 10**30),
        ("MAX_MESSAGE_BYTES", 2**40),
        ("HISTORY_BYTES", 0.5),
        ("HELD_LIMIT", 0),
        ("HELD_LIMIT", 5.5),
        ("HELD_LIMIT", True),
        ("DEAD_LIMIT", None),
        ("SLOTS", 0),
        ("SLOTS", True),
        ("SLOTS", "2"),
        ("GROUPS", 7),
        ("GROUPS", [7]),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(key, value):
    with pytest.raises(ConfigurationError, match=rf"BUS\['{key}'\]") as caught:
        settings(**{key: value})
    assert "Sesame" not in str(caught.value)


def test_a_group_must_have_a_name_that_a_group_can_have():
    with pytest.raises(ConfigurationError, match="Group 'in ventory' is not a valid name"):
        settings(GROUPS=["in ventory"])


@pytest.mark.parametrize("groups", ["inventory, ledger", "inventory,ledger,", ["inventory", "ledger"]])
def test_groups_can_be_a_list_or_names_with_commas(groups):
    assert settings(GROUPS=groups).groups == ("inventory", "ledger")


def test_a_process_without_django_reads_the_environment():
    found = conf.from_environment(
        {"BUS_URL": URL, "BUS_PREFIX": "shop", "BUS_GROUPS": "a,b", "BUS_OTHER": "1"}
    )
    assert (found.url, found.prefix, found.groups) == (URL, "shop", ("a", "b"))


@pytest.mark.parametrize(("word", "read_only"), [("1", True), ("Yes", True), ("0", False), ("off", False)])
def test_a_process_without_django_can_be_read_only(word, read_only):
    assert conf.from_environment({"BUS_URL": URL, "BUS_READ_ONLY": word}).read_only is read_only


def test_a_word_that_may_mean_read_only_is_not_taken_for_no():
    with pytest.raises(ConfigurationError, match=r"BUS\['READ_ONLY'\] must be True or False, not 'ja'"):
        conf.from_environment({"BUS_URL": URL, "BUS_READ_ONLY": "ja"})


def test_a_process_without_django_has_its_credentials_beside_the_url():
    found = conf.from_environment({"BUS_URL": URL, "BUS_USERNAME": "u", "BUS_PASSWORD": "Sesame"})
    assert (found.address.username, found.address.password) == ("u", "Sesame")
    assert "Sesame" not in repr(found) + repr(found.address)


def test_an_environment_without_a_url_is_an_error():
    with pytest.raises(ConfigurationError, match="is missing"):
        conf.from_environment({})


def test_settings_are_read_anew_when_they_change(settings, monkeypatch):
    monkeypatch.delenv("BUS_GROUPS", raising=False)
    settings.BUS = {"URL": URL, "PREFIX": "one"}
    assert conf.from_django().prefix == "one"
    settings.BUS = {"URL": URL, "PREFIX": "two"}
    assert conf.from_django().prefix == "two"


def test_the_groups_of_a_worker_can_come_from_its_environment(settings, monkeypatch):
    settings.BUS = {"URL": URL, "GROUPS": ["ledger"]}
    monkeypatch.setenv("BUS_GROUPS", "inventory")
    assert conf.from_django().groups == ("inventory",)


def test_settings_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        settings().prefix = "other"


@pytest.mark.parametrize("key", ["URI", "PASWORD", "REDIS_URL"])
def test_a_password_under_a_key_that_is_spelled_wrong_is_masked_too(key: str) -> None:
    masked = conf.masking({"URL": URL, "PREFIX": "shop", key: "redis://:zebra@a"})

    assert "zebra" not in repr(masked)
    assert "shop" in repr(masked)


def test_what_tests_have_for_themselves_is_masked_too() -> None:
    masked = conf.masking({"URL": "redis://a", "TEST": {"URL": "redis://:zebra@a", "PASSWORD": "zebra"}})

    assert "zebra" not in repr(masked)
