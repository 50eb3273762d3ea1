"""Publish three orders and consume them. Run: python -m examples.publish_and_consume (Ctrl-C ends it).

It keeps its messages in .jitney-examples, in the folder that you are in. To stop its server:
BUS_URL=embedded://$PWD/.jitney-examples jitney server stop
"""

import os

import django
from django.conf import settings
from django.core.management import call_command

import bus
import workers

HERE = f"{os.getcwd()}/.jitney-examples"
settings.configure(
    DEBUG=True,  # so the first client starts the embedded server
    INSTALLED_APPS=["bus", "workers"],
    BUS={"URL": f"embedded://{HERE}"},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{HERE}.sqlite3"}},
)
django.setup()

orders = bus.topic("orders", partitions=4, retention="7d")


@bus.subscribe("orders", group="inventory")
def reserve_stock(message: bus.Message) -> None:
    print(f"{message.key}: reserve {message.value['quantity']}", flush=True)


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for quantity in (1, 2, 3):
        receipt = orders.publish({"quantity": quantity}, key="A1")  # one key, so handled in this order
        print(f"stored as {receipt.partition}/{receipt.id}", flush=True)
    workers.app.worker_main(["worker", "--concurrency", "2", "--loglevel", "WARNING"])
