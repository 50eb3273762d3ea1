"""One topic in order, one without."""

import bus

invoices = bus.topic("invoices", partitions=2)
hints = bus.topic("hints", partitions=2)
