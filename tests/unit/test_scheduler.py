"""Lanes with work get slices: fairly, one slice a lane, and none is forgotten."""

from __future__ import annotations

import pytest

from bus.format.lane_id import LaneId
from workers.order import MAX_LANES, Report
from workers.progress import Progress
from workers.scheduling.scheduler import BACKOFF, FAST_SECONDS, Scheduler
from workers.scheduling.slots import QUARANTINE_SECONDS, STUCK_SECONDS

GROUP = ("orders", "stock")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class World:
    """A scheduler over `slots` slots, with its shared memory and a clock that stands still."""

    def __init__(self, slots=2):
        self.clock = Clock()
        self.progress = Progress(slots)
        self.scheduler = Scheduler(self.progress, slots, "nonce", clock=self.clock)

    def own(self, *partitions, group="stock", ordering="key"):
        ids = [LaneId("orders", number, group) for number in partitions]
        for id in ids:
            self.scheduler.add(id, f"me:{id.partition}", ordering)
        return ids

    def plan(self, free=1):
        return self.scheduler.next_slices(free)

    def end(self, order, flags=Report.NONE, *, last=(5, 0), due=-1, seconds=None):
        """The slice reports the same of each of its lanes and ends."""
        for index in range(len(order.lanes)):
            self.progress.report(order.slot, index, int(flags), *last, due)
        if seconds is not None:
            self.progress.set_handler_ns(order.slot, int(seconds * 1e9))
        return self.scheduler.ended(order.slot)

    def run(self, order, index, message_id):
        """The child of this slice has a message in hand."""
        self.progress.running(order.slot, index, message_id, self.clock.now)

    def make_fast(self, *partitions):
        """Own these lanes, in a group whose handler is known to be fast, all idle."""
        ids = self.own(*partitions)
        while orders := self.plan():
            self.end(orders[0], seconds=FAST_SECONDS / 10)
        assert set(self.scheduler.watched()) == set(ids)
        return ids


@pytest.fixture
def world():
    return World()


def partitions(order):
    return [lane.id.partition for lane in order.lanes]


# ---------------------------------------------------------------------- what becomes a slice


def test_a_new_lane_is_ready_at_once_and_looks_for_left_overs(world):
    world.own(0)
    (order,) = world.plan()
    assert partitions(order) == [0]
    assert order.lanes[0].state.recover
    assert order.lanes[0].state.lease == "me:0"
    assert order.nonce == "nonce"


def test_a_new_lane_that_is_surely_at_rest_gets_a_slice_only_when_there_is_news(world):
    lane = LaneId("orders", 0, "stock")
    world.scheduler.add(lane, "me:0", "key", position="7-0")
    assert world.plan() == []
    assert world.scheduler.watched() == {lane: "7-0"}
    assert world.scheduler.wake([lane])
    (order,) = world.plan()
    assert (order.lanes[0].state.last_id, order.lanes[0].state.seen, order.lanes[0].state.recover) == (
        "7-0",
        "7-0",
        False,
    )


def test_lanes_are_served_in_the_order_in_which_they_became_ready(world):
    world.own(0, 1, 2)
    served = []
    for _ in range(6):
        (order,) = world.plan()
        served += partitions(order)
        world.end(order, Report.MORE)
    assert served == [0, 1, 2, 0, 1, 2]


def test_a_busy_lane_does_not_starve_another_group(world):
    world.own(0)
    world.own(0, group="ledger")
    served = []
    for _ in range(4):
        (order,) = world.plan()
        served.append(order.lanes[0].id.group)
        world.end(order, Report.MORE)
    assert served == ["stock", "ledger", "stock", "ledger"]


def test_no_lane_is_ever_in_two_slices_at_once():
    world = World(slots=4)
    world.own(*range(3))
    orders = world.plan(4)
    taken = [number for order in orders for number in partitions(order)]
    assert sorted(taken) == [0, 1, 2]
    world.scheduler.wake(lane.id for order in orders for lane in order.lanes)
    assert world.plan(4) == []


def test_there_are_never_more_slices_than_slots_or_free_processes():
    world = World(slots=2)
    world.own(*range(5))
    assert len(world.plan(1)) == 1
    assert len(world.plan(9)) == 1
    assert world.plan(9) == []


def test_an_unknown_or_slow_handler_gets_one_lane_a_slice(world):
    world.own(0, 1)
    (order,) = world.plan()
    assert len(order.lanes) == 1
    world.end(order, Report.MORE, seconds=FAST_SECONDS * 2)
    (order,) = world.plan()
    assert len(order.lanes) == 1


def test_a_fast_group_gets_the_free_slots_share_of_its_lanes(world):
    ids = world.make_fast(*range(10))
    world.scheduler.wake(ids[:1])
    orders = world.plan(2)
    assert len(orders[0].lanes) == 5


def test_a_slice_has_room_for_no_more_than_the_lanes_it_can_report(world):
    ids = world.make_fast(*range(MAX_LANES + 20))
    world.scheduler.wake(ids)
    (order,) = world.plan(1)
    assert len(order.lanes) == MAX_LANES


def test_unordered_groups_get_one_lane_a_slice_however_fast():
    world = World()
    world.own(0, 1, ordering="none")
    (order,) = world.plan()
    world.end(order, Report.MORE, seconds=FAST_SECONDS / 10)
    (order,) = world.plan()
    assert len(order.lanes) == 1


def test_nobody_is_asked_to_hurry_when_all_lanes_with_work_are_being_served(world):
    # Given a fast group, all of whose lanes were ready and are now in one slice
    ids = world.make_fast(*range(4))
    world.scheduler.wake(ids)
    (order,) = world.plan(1)
    assert len(order.lanes) == 4
    # Then the slice may linger
    world.plan(0)
    assert not world.progress.wanted(order.slot)
    world.progress.waiting(order.slot, 77)
    assert world.scheduler.lingering() == []


def test_slices_are_asked_to_end_their_linger_when_a_lane_waits_for_a_slot(world):
    world.own(0, 1)
    (order,) = world.plan(1)
    world.progress.waiting(order.slot, 77)
    assert world.progress.wanted(order.slot)
    assert world.scheduler.lingering() == [77]


def test_the_queue_does_not_grow_under_steady_load(world):
    ids = world.make_fast(*range(16))
    world.scheduler.wake(ids)
    for _ in range(200):
        (order,) = world.plan(1)
        world.end(order, Report.MORE, seconds=FAST_SECONDS / 10)
    assert len(world.scheduler._ready) <= len(ids)


# ---------------------------------------------------------------------- news


def test_an_idle_lane_is_watched_from_the_last_id_that_it_was_given(world):
    (id,) = world.own(0)
    world.end(world.plan()[0], last=(7, 3))
    assert world.scheduler.watched() == {id: "7-3"}


def test_news_makes_a_watched_lane_ready_and_a_running_one_ready_again(world):
    (id,) = world.own(0)
    (order,) = world.plan()
    world.scheduler.wake([id])
    world.end(order)
    (order,) = world.plan()
    world.end(order)
    assert world.plan() == []
    assert world.scheduler.wake([id])
    assert len(world.plan()) == 1


def test_a_blocked_lane_is_woken_by_its_due_retry_alone(world):
    (id,) = world.own(0)
    world.end(world.plan()[0], Report.BLOCKED, due=int(world.clock.now * 1000) + 500)
    assert id not in world.scheduler.watched()
    assert not world.scheduler.wake_due()
    world.clock.now += 0.6
    assert world.scheduler.wake_due()
    assert len(world.plan()) == 1


def test_a_paused_group_gets_no_slices_and_loses_no_news(world):
    (id,) = world.own(0)
    world.end(world.plan()[0])
    world.scheduler.pause([GROUP])
    world.scheduler.wake([id])
    assert world.plan() == []
    world.scheduler.pause([])
    assert len(world.plan()) == 1


def test_a_paused_group_does_not_hold_up_another(world):
    world.own(0)
    world.own(0, group="ledger")
    world.scheduler.pause([GROUP])
    (order,) = world.plan(2)
    assert order.lanes[0].id.group == "ledger"


def test_a_lane_in_trouble_backs_off_longer_each_time_and_is_never_forgotten(world):
    world.own(0)
    waits = []
    for _ in range(10):
        (order,) = world.plan()
        world.end(order, Report.TROUBLE | Report.RECOVER)
        assert world.plan() == []
        waits.append(world.scheduler.next_due() - world.clock.now)
        world.clock.now += waits[-1] + 0.001
        assert world.scheduler.wake_due()
    assert waits[0] <= BACKOFF.delay * 1.5
    assert max(waits) <= BACKOFF.max_delay * 1.5
    assert min(waits[-3:]) > max(waits[:2])


def test_a_slice_that_broke_without_a_word_is_tried_again_with_recovery(world):
    world.own(0)
    (order,) = world.plan()
    world.end(order)
    world.scheduler.wake([order.lanes[0].id])
    (order,) = world.plan()
    assert not order.lanes[0].state.recover
    world.scheduler.ended(order.slot)  # no report
    world.clock.now += BACKOFF.max_delay
    assert world.scheduler.wake_due()
    (order,) = world.plan()
    assert order.lanes[0].state.recover


def test_a_vanished_group_is_reported_and_tried_again(world):
    world.own(0)
    ended = world.end(world.plan()[0], Report.GONE | Report.RECOVER)
    assert ended.gone
    world.clock.now += BACKOFF.max_delay
    assert world.scheduler.wake_due()


def test_a_slice_that_celery_dropped_runs_again_only_under_a_new_lease(world):
    world.own(0)
    (order,) = world.plan()
    world.scheduler.dropped(order.slot, "")
    # A process may have read it, so it is told to stop, and its slot is kept apart
    assert world.progress.revoked(order.slot)
    assert world.plan() == []
    (lane,) = world.scheduler.taken_back()
    world.scheduler.renew(lane.id, lane.lease, "me:new")
    (again,) = world.plan()
    assert again.lanes[0].state.recover
    assert again.lanes[0].state.lease == "me:new"
    assert again.slot != order.slot


def test_the_slot_of_a_dropped_slice_is_used_again_after_a_while(world):
    world.own(*range(4))
    for order in world.plan():
        world.scheduler.dropped(order.slot, "")
    for lane in world.scheduler.taken_back():
        world.scheduler.renew(lane.id, lane.lease, f"{lane.lease}.")
    world.clock.now += QUARANTINE_SECONDS
    assert world.plan()


def test_a_lost_lane_is_dropped_and_its_late_report_ignored(world):
    (id,) = world.own(0)
    (order,) = world.plan()
    assert world.scheduler.lost(id) is not None
    world.scheduler.add(id, "me:9", "key")
    ended = world.end(order, Report.LOST)
    assert not ended.lost
    assert world.scheduler.owned() == {id: "me:9"}


def test_a_slice_of_a_lost_lane_is_told_to_stop(world):
    (id,) = world.own(0)
    (order,) = world.plan()
    world.scheduler.lost(id)
    assert world.progress.stopping(order.slot)


# ---------------------------------------------------------------------- waiting for a slot


def test_lanes_with_work_say_how_long_they_have_waited_for_a_slot(world):
    first, second = world.own(0, 1)
    (order,) = world.plan(1)
    world.clock.now += 4
    assert world.scheduler.waiting() == {second: 4.0}
    # A slice that ended with more to do waits anew, an idle lane does not wait
    world.end(order, Report.MORE)
    world.clock.now += 1
    assert world.scheduler.waiting() == {second: 5.0, first: 1.0}
    while orders := world.plan():
        world.end(orders[0])
    assert world.scheduler.waiting() == {}


def test_a_paused_lane_waits_for_its_group_and_not_for_a_slot(world):
    (id,) = world.own(0)
    world.scheduler.pause([GROUP])
    world.clock.now += 60
    assert world.scheduler.waiting() == {}
    world.scheduler.pause([])
    world.clock.now += 1
    assert world.scheduler.waiting() == {id: 1.0}


def test_lanes_that_are_one_slots_own_are_not_said_to_wait(world):
    world.scheduler.add(LaneId("orders", 0, "stock", "me.1"), "me:0", "none")
    world.clock.now += 60
    assert world.scheduler.waiting() == {}


def test_a_worker_is_at_rest_while_a_slot_is_free_or_lingers_and_nothing_waits(world):
    world.own(0, 1, 2)
    assert not world.scheduler.is_at_rest()
    first, second = world.plan(2)
    world.end(first)
    (third,) = world.plan()
    assert not world.scheduler.is_at_rest()  # both slots are at work
    world.progress.waiting(third.slot, 77)
    assert world.scheduler.is_at_rest()
    world.end(second)
    assert world.scheduler.is_at_rest()


# ---------------------------------------------------------------------- death


def test_after_a_death_the_next_slice_learns_what_was_finished_and_what_ran(world):
    world.own(0)
    (order,) = world.plan()
    world.progress.begin(order.slot, 123)
    world.run(order, 0, b"8-0")
    world.progress.done(order.slot)
    world.run(order, 0, b"9-1")
    world.scheduler.ended(order.slot, died="worker lost")
    (order,) = world.plan()
    fallen = order.lanes[0].fallen
    assert fallen.finished == ("8-0",)
    assert (fallen.running, fallen.batch, fallen.reason) == ("9-1", False, "worker lost")
    assert order.lanes[0].state.recover


def test_what_a_slice_has_left_is_there_until_another_has_settled_it(world):
    # Given a slice that died, having refused a message
    world.own(0)
    (order,) = world.plan()
    world.run(order, 0, b"8-0")
    world.progress.ended(order.slot, 0, [], [(b"8-0", b"why")])
    world.run(order, 0, b"9-1")
    world.scheduler.ended(order.slot, died="worker lost")
    # When those after it die, have trouble, or are dropped, before they have settled what it left
    for end in ("dies", "trouble", "dropped"):
        (order,) = world.plan()
        fallen = order.lanes[0].fallen
        assert (fallen.refused, fallen.running) == ((b"why",), "9-1")
        if end == "dies":
            world.scheduler.ended(order.slot, died="worker lost")
        elif end == "trouble":
            world.end(order, Report.TROUBLE)
            world.clock.now += 10
            world.scheduler.wake_due()
        else:
            world.scheduler.dropped(order.slot, "")
            (lane,) = world.scheduler.taken_back()
            world.scheduler.renew(lane.id, lane.lease, "me:new")
    # Then whoever comes next still finds it; and once it is settled it is gone, whatever comes then
    (order,) = world.plan()
    assert order.lanes[0].fallen.refused == (b"why",)
    world.progress.took_in(order.slot)
    world.end(order, Report.TROUBLE)
    world.clock.now += 10
    world.scheduler.wake_due()
    (order,) = world.plan()
    assert order.lanes[0].fallen is None


def test_only_the_lane_of_the_running_message_is_blamed_for_a_death(world):
    ids = world.make_fast(0, 1)
    world.scheduler.wake(ids)
    (order,) = world.plan(1)
    world.progress.begin(order.slot, 123)
    world.run(order, 1, b"9-0")
    world.scheduler.ended(order.slot, died="worker lost")
    fallen = {lane.id.partition: lane.fallen for order in world.plan(2) for lane in order.lanes}
    stuck = order.lanes[1].id.partition
    assert fallen[stuck].running == "9-0"
    assert fallen[1 - stuck].running is None


def test_no_serial_comes_twice_under_one_lease_or_a_child_would_reuse_what_is_out_of_date(world):
    (id,) = world.own(0)
    seen = []
    for died in (False, False, True, False, True, True, False, False, False):
        (order,) = world.plan()
        seen.append(order.lanes[0].serial)
        if died:
            world.scheduler.ended(order.slot, died="worker lost")
        else:
            world.end(order, Report.MORE)
    assert world.scheduler.owned() == {id: "me:0"}
    assert len(seen) == len(set(seen))


def test_a_slice_after_a_death_never_follows_on_what_an_earlier_process_left(world):
    # A process keeps a lane under the serial of its slice and reuses it if the next order follows on it.
    world.own(0)
    (order,) = world.plan()
    before = order.lanes[0].serial
    world.scheduler.ended(order.slot, died="worker lost")
    (order,) = world.plan()
    assert order.lanes[0].serial != before + 1


# ---------------------------------------------------------------------- leaving


def test_an_idle_lane_is_given_up_at_once_a_running_one_when_its_slice_ends(world):
    first, second = world.own(0, 1)
    (order,) = world.plan(1)
    assert world.scheduler.leave(second)
    assert not world.scheduler.leave(first)
    assert [lane.id for lane in world.scheduler.given_up()] == [second]
    ended = world.end(order, Report.MORE)
    assert [lane.id for lane in ended.free] == [first]


def test_a_lane_that_is_given_up_is_ours_until_it_is_given_back_and_gets_no_slice(world):
    (id,) = world.own(0)
    assert world.scheduler.leave(id)
    world.scheduler.wake([id])
    world.scheduler.doubt()
    world.scheduler.renew(id, "me:0", "me:new")
    assert world.plan() == []
    assert world.scheduler.watched() == {}
    assert world.scheduler.owned() == {id: "me:new"}
    world.scheduler.given_back(world.scheduler.given_up())
    assert world.scheduler.owned() == {}


def test_a_lane_that_was_taken_again_since_is_not_the_one_that_was_given_back(world):
    (id,) = world.own(0)
    world.scheduler.leave(id)
    before = world.scheduler.given_up()
    world.scheduler.lost(id)
    world.own(0)
    world.scheduler.given_back(before)
    assert id in world.scheduler.owned()


def test_a_lane_that_may_stay_after_all_stays(world):
    (id,) = world.own(0)
    (order,) = world.plan()
    world.scheduler.leave(id)
    world.scheduler.stay(id)
    assert world.end(order).free == []
    assert id in world.scheduler.owned()


def test_an_orphaned_lane_leaves_when_it_is_drained(world):
    id = LaneId("orders", 0, "stock", "dead-1.0")
    world.scheduler.add(id, "me:0", "none", drain_only=True)
    (order,) = world.plan()
    assert world.end(order, Report.RECOVER | Report.MORE).free == []
    (order,) = world.plan()
    assert [lane.id for lane in world.end(order).free] == [id]


def test_a_stopped_scheduler_plans_nothing(world):
    world.own(0)
    world.scheduler.stopped = True
    assert world.plan() == []


# ---------------------------------------------------------------------- taking lanes back


def stuck_slice(world):
    """A slice over three lanes that sticks in a message of its second."""
    ids = world.make_fast(0, 1, 2)
    world.scheduler.wake(ids)
    (order,) = world.plan(1)
    world.progress.begin(order.slot, 123)
    world.run(order, 0, b"6-0")
    world.progress.done(order.slot)
    world.run(order, 1, b"6-0")
    world.clock.now += STUCK_SECONDS * 1.5
    return order


def test_a_slice_that_sticks_gives_back_its_other_lanes_with_what_it_had_finished(world):
    order = stuck_slice(world)
    assert world.scheduler.taken_back() == []
    assert world.progress.revoked(order.slot)
    taken = world.scheduler.taken_back()
    assert [lane.id for lane in taken] == [order.lanes[0].id, order.lanes[2].id]
    assert taken[0].fallen.finished == ("6-0",)
    assert taken[1].fallen.finished == ()


def test_a_lane_that_was_taken_back_runs_again_only_under_its_new_lease(world):
    order = stuck_slice(world)
    world.scheduler.taken_back()
    lane, _other = world.scheduler.taken_back()
    assert world.plan() == []
    world.scheduler.renew(lane.id, lane.lease, "me:new")
    (again,) = world.plan(1)
    assert again.lanes[0].state.lease == "me:new"
    assert again.lanes[0].state.recover
    # And what the stuck slice says of it in the end does not count
    world.end(order, Report.LOST)
    assert lane.id in world.scheduler.owned()


def test_a_slice_that_sticks_in_a_message_begun_just_before_it_was_revoked_gives_back_too(world):
    order = stuck_slice(world)
    world.scheduler.taken_back()
    # Given that it had passed its look at the revoke mark, and begun another message
    world.run(order, 1, b"7-0")
    world.clock.now += STUCK_SECONDS * 1.5
    taken = world.scheduler.taken_back() or world.scheduler.taken_back()
    assert len(taken) == 2


def test_a_lane_whose_new_lease_could_not_be_set_is_asked_for_again(world):
    # Given lanes that were taken back, while Redis could not be reached to renew them
    stuck_slice(world)
    world.scheduler.taken_back()
    taken = world.scheduler.taken_back()
    # Then they come up again, sooner or later, and do not wait for ever
    world.clock.now += 60
    again = world.scheduler.taken_back()
    assert {lane.id for lane in again} == {lane.id for lane in taken} or world.scheduler.wake_due()


def test_a_message_beyond_the_time_limit_is_seen(world):
    world.own(0)
    (order,) = world.plan()
    world.progress.begin(order.slot, 123)
    world.run(order, 0, b"6-0")
    world.clock.now += 5
    assert world.scheduler.overdue(lambda _id: None) == []
    assert world.scheduler.overdue(lambda _id: 6.0) == []
    assert world.scheduler.overdue(lambda _id: 4.0) == [order.slot]


# ---------------------------------------------------------------------- another history of the server


def test_after_the_server_was_lost_no_lane_goes_on_with_what_was_known_of_it_idle_ready_or_running(world):
    idle, running, ready = world.own(0, 1, 2)
    for _ in range(2):
        world.end(world.plan()[0])
    world.scheduler.wake([idle])
    first = {order.lanes[0].id: order for order in world.plan(2)}
    before = {id: order.lanes[0].serial for id, order in first.items()}
    world.end(first.pop(next(iter(first.keys() - {running}))))
    assert len(world.plan(0)) == 0
    # When the connection is lost, and a slice ends that had begun before
    world.scheduler.doubt()
    for order in first.values():
        world.end(order)
    # Then each lane looks for left-overs in its next slice, and that is not the next of any process
    lanes = [
        lane for _ in range(3) for order in world.plan() for lane in order.lanes if not world.end(order).gone
    ]
    assert {lane.id for lane in lanes} == {idle, running, ready}
    assert all(lane.state.recover for lane in lanes)
    assert all(lane.serial > before.get(lane.id, 0) + 1 for lane in lanes)
    # And once only
    assert world.plan() == []


def test_a_slice_is_told_in_which_history_of_the_server_the_last_one_left_the_lane(world):
    (id,) = world.own(0)
    (order,) = world.plan()
    assert order.lanes[0].state.history == 0
    world.progress.report(order.slot, 0, 0, 5, 0, -1, 2**63 - 1)
    world.scheduler.ended(order.slot)
    world.scheduler.wake([id])
    assert world.plan()[0].lanes[0].state.history == 2**63 - 1
