"""One topic whose keys must stay in order, one whose messages may come as they like."""

import bus

keyed = bus.topic("keyed", partitions=8)
loose = bus.topic("loose", partitions=4)

#: topic → its group
GROUPS = {"keyed": "bykey", "loose": "anyhow"}
