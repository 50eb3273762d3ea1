"""One topic in order."""

import bus

readings = bus.topic("readings", partitions=4)
