"""One payment needs a retry, two become dead letters. Run: python -m examples.retries_and_dead_letters

See the dead letters: BUS_URL=embedded://$PWD/.jitney-examples jitney dead list payments charge
"""

import os

import django
from django.conf import settings
from django.core.management import call_command

import bus
import workers

HERE = f"{os.getcwd()}/.jitney-examples"
settings.configure(
    DEBUG=True,
    INSTALLED_APPS=["bus", "workers"],
    BUS={"URL": f"embedded://{HERE}"},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{HERE}.sqlite3"}},
)
django.setup()
payments = bus.topic("payments", partitions=2)


@bus.subscribe("payments", group="charge", retry=bus.RetryPolicy(attempts=3, delay=0.5, factor=2.0))
def charge(message: bus.Message) -> None:
    print(f"{message.key}: attempt {message.attempt}", flush=True)
    if message.value["amount"] <= 0:
        raise bus.Reject("nothing to charge")  # a dead letter at once
    if message.key == "unlucky" or message.attempt == 1:
        # Tried again after 0.5 s, then after 1 s; after the third attempt a dead letter.
        raise ConnectionError("the bank does not answer")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for key, amount in {"slow": 10, "unlucky": 20, "empty": 0}.items():
        payments.publish({"amount": amount}, key=key)
    workers.app.worker_main(["worker", "--concurrency", "2", "--loglevel", "WARNING"])
