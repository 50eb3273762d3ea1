"""Amounts come in; what is forwarded goes out again, by the outbox."""

import bus

amounts = bus.topic("amounts", partitions=4)
transfers = bus.topic("transfers", partitions=4)
forwarded = bus.topic("forwarded", partitions=4)
