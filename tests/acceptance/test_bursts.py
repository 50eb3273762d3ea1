"""Where many lanes fail at once the log has one line a second for each cause, with a key."""

from __future__ import annotations

from tests.acceptance.shopping import Shop
from tests.waiting import wait_until


def test_keys_of_a_wrong_type_are_said_once_a_second_and_hinder_no_other_topic(shop: Shop) -> None:
    # given a group whose keys somebody has overwritten, in all partitions
    worker = shop.worker().wait_ready()
    shop.wait_owned("keyed")
    keys = [shop.bus.keys.partition("keyed", number).retry("bykey") for number in range(8)]
    shop.bus.client.pipe([("SET", key, "foreign") for key in keys])
    # when messages come for that topic and for another one
    shop.publish("keyed", 200, fail=1)
    shop.publish("loose", 50)
    about = "cannot be worked on, and is tried again"
    wait_until(lambda: worker.says(about), 40, "a line about it")
    shop.wait_idle("loose")
    # then each process says it at most once a second, with the key of a lane
    log = worker.log.read_text()
    said = [line for line in log.splitlines() if about in line]
    seconds = [(line[:19], line.split("jitney.workers")[0][-8:]) for line in said]
    assert all(f"{shop.bus.settings.prefix}:{{keyed:" in line and " ERROR " in line for line in said)
    assert all("a string stands where a zset should be" in line for line in said)
    assert max(map(seconds.count, seconds)) <= 3  # two processes; a second of the clock may hold two of one
    assert "Traceback" not in log.partition(about)[0].rpartition("ready.")[2]
    # and when the keys are gone it goes on by itself
    shop.bus.client.pipe([("DEL", key) for key in keys])
    shop.wait_idle("keyed")
    shop.assert_each("keyed", 200)
