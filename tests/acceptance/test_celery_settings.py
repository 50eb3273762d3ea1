"""Settings of a project that are meant for its tasks do not touch the slices of the bus."""

from __future__ import annotations

import json

import pytest

from tests import nursery
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until

SETTINGS = {
    "CELERY_TASK_TIME_LIMIT": 3,
    "CELERY_TASK_SOFT_TIME_LIMIT": 2,
    "CELERY_TASK_DEFAULT_RATE_LIMIT": "1/m",
    "CELERY_TASK_ANNOTATIONS": {
        "*": {
            "rate_limit": "1/m", "time_limit": 1, "soft_time_limit": 0.5, "acks_late": False,
            "track_started": True, "ignore_result": False, "reject_on_worker_lost": False,
            "acks_on_failure_or_timeout": True,
        }
    },
    "CELERY_TASK_ACKS_LATE": False,
    "CELERY_TASK_REJECT_ON_WORKER_LOST": False,
    "CELERY_TASK_TRACK_STARTED": True,
    "CELERY_TASK_IGNORE_RESULT": False,
    "CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED": True,
    "CELERY_TASK_ALWAYS_EAGER": True,
    "CELERY_TASK_SERIALIZER": "yaml",
    "CELERY_TASK_ROUTES": {"jitney.*": {"queue": "elsewhere"}, "*": {"queue": "elsewhere"}},
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0",
    "CELERY_WORKER_MAX_MEMORY_PER_CHILD": 1,
    "CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS": True,
}  # fmt: skip


def celery(shop: Shop, *arguments: str) -> str:
    return nursery.run(["-m", "celery", "-A", "workers", *arguments], shop.environment, check=False)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_slices_and_slow_handlers_go_on_under_any_settings_for_tasks(shop: Shop, pool: str) -> None:
    # Given a project with limits for all its tasks
    shop.environment["SHOP_SETTINGS"] = json.dumps(SETTINGS)
    worker = shop.worker("one", "-c", "2", "--pool", pool, "--time-limit", "3").wait_ready()
    # When handlers take longer than that, or one message comes after another, each for a slice of its own
    shop.publish("keyed", 1, sleep=5)
    for number in range(1, 30):
        shop.publish("keyed", 1, first=number)
        shop.wait_lines(number, topic="keyed", timeout=30)
    shop.wait_lines(30, topic="keyed", timeout=30)
    # Then each has run once
    assert [(line.n, line.attempt) for line in shop.lines("start", "keyed") if line.n == 0] == [(0, 1)]
    shop.assert_each_once("keyed", 30)
    shop.wait_idle("keyed")
    assert not worker.says("Traceback")
    assert worker.stop() == 0


@pytest.mark.timeout(200)
def test_remote_control_of_all_tasks_does_not_stop_slices_and_tasks_keep_their_limits(shop: Shop) -> None:
    worker = shop.worker("one", "-c", "2", "--time-limit", "3").wait_ready()
    # When somebody gives slices limits of rate and time
    assert "OK" in celery(shop, "control", "rate_limit", "jitney.slice", "1/m")
    assert "OK" in celery(shop, "control", "time_limit", "jitney.slice", "1", "1")
    # Then that changes nothing
    shop.publish("keyed", 1, sleep=5)
    for number in range(1, 20):
        shop.publish("keyed", 1, first=number)
        shop.wait_lines(number, topic="keyed", timeout=30)
    # And ordinary tasks have the limit of their worker
    celery(shop, "call", "tests.acceptance.shop.tasks.sleep", "--args", "[60]")
    wait_until(
        lambda: worker.says("Hard time limit (3.0s) exceeded for tests.acceptance.shop.tasks.sleep"), 30
    )
    shop.wait_lines(20, topic="keyed", timeout=30)
    shop.assert_each_once("keyed", 20)
    assert [line.attempt for line in shop.lines("start", "keyed") if line.n == 0] == [1]
    assert worker.stop() == 0
