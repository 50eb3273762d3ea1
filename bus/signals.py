"""The Django signals of consuming, sent in the process where it happens, with the keywords named below."""

from django.dispatch import Signal

#: A message failed and will be tried again. message, subscription, exception, delay (seconds).
message_retried = Signal()

#: A message became a dead letter. message, subscription, exception (or None), reason.
message_dead = Signal()

#: A worker no longer owns a lane that it was working on. lane (bus.format.lane_id.LaneId).
lease_lost = Signal()
