"""Handlers that do as little as the hand-written loop's."""

import os

import bus

total = 0


def handle(message: bus.Message) -> None:
    global total
    total += message.value["qty"]


# For benchmarks.idle: so many groups, of which there is nothing to handle.
for number in range(int(os.environ.get("BENCH_GROUPS", "0"))):
    bus.subscribe("bench", group=f"g{number}", ordering="key")(handle)
if "BENCH_GROUPS" not in os.environ:
    bus.subscribe("bench", group="bench", ordering="key")(handle)
