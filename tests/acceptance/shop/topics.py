"""One topic for each kind of group."""

import bus

keyed = bus.topic("keyed", partitions=8)
strict = bus.topic("strict", partitions=2)
loose = bus.topic("loose", partitions=4)
batches = bus.topic("batches", partitions=4)
limited = bus.topic("limited", partitions=2)
awaited = bus.topic("awaited", partitions=2)
