"""A worker process dies in the middle of a deposit. Run: python -m examples.once_with_the_database"""

import os

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction

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
deposits = bus.topic("deposits")


@bus.subscribe("deposits", group="bank", atomic=True)  # the effect and a row for the message: one transaction
def book(message: bus.Message) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO deposit (amount) VALUES (%s)", [message.value])
        if message.attempt == 1 and message.value == 20:
            os._exit(1)  # the transaction is rolled back, and the message comes again
        cursor.execute("SELECT SUM(amount) FROM deposit")
        print(f"booked {message.value}, balance {cursor.fetchone()[0]}", flush=True)


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS deposit (amount INTEGER)")
        for amount in (10, 20, 30):
            deposits.publish_in_transaction(amount)  # published with the commit, once, by the worker
    workers.app.worker_main(["worker", "--concurrency", "2", "--loglevel", "WARNING"])
