"""One topic with groups of all kinds, and a second one."""

import bus

keyed = bus.topic("keyed", partitions=6)
loose = bus.topic("loose", partitions=4)
