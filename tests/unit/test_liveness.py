"""Nobody is taken for dead who is not, and who is dead is found in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.liveness import BEAT_SECONDS, DEAD_SECONDS, LEAD_SECONDS, MAX_GAP, Liveness

seconds_between_looks = st.lists(st.floats(0.1, 60), min_size=1, max_size=60)


def watch(table, start=0.0, *, me="me"):
    liveness = Liveness(me)
    liveness.observe(table, start)
    return liveness


def test_a_counter_that_stands_still_for_15_seconds_is_a_dead_worker():
    liveness = watch({"me": 1, "peer": 7})
    for now in (5, 10, 14.9):
        liveness.observe({"me": now, "peer": 7}, now)
        assert liveness.dead() == set()
    liveness.observe({"me": 9, "peer": 7}, DEAD_SECONDS)
    assert liveness.dead() == {"peer"}
    assert liveness.is_dead("peer")


@given(seconds_between_looks)
def test_a_worker_whose_counter_moves_is_never_dead(gaps):
    liveness, now = watch({"peer": 0}), 0.0
    for beat, gap in enumerate(gaps, 1):
        now += gap
        liveness.observe({"peer": beat}, now)
        assert liveness.dead() == set()


@given(seconds_between_looks)
def test_the_observer_is_never_dead_to_itself(gaps):
    liveness, now = watch({"me": 1}), 0.0
    for gap in gaps:
        now += gap
        liveness.observe({"me": 1}, now)
        assert not liveness.is_dead("me")
        assert liveness.dead() == set()


@given(st.floats(0, 100), st.floats(0, BEAT_SECONDS), st.floats(0.1, 1.0))
def test_a_frozen_server_kills_nobody(freeze, phase, retry):
    # Given a peer that beats, and a server that freezes for any time; nothing can be written or read then
    liveness, now, beat, next_beat = Liveness("me"), 0.0, 0, phase
    thaw = 30 + freeze
    while now < thaw + 60:
        frozen = 30 <= now < thaw
        if not frozen:
            while next_beat <= now:  # a beat that had to wait for the server comes when it is back
                beat, next_beat = beat + 1, max(next_beat, thaw if next_beat >= 30 else 0) + BEAT_SECONDS
            # When the observer reads without error
            liveness.observe({"peer": beat}, now)
            # Then it never takes the peer for dead
            assert liveness.dead() == set()
            now += BEAT_SECONDS
        else:
            liveness.begin_anew(now)
            now += retry


@given(st.floats(0, 1000), st.floats(0, BEAT_SECONDS))
def test_a_pause_of_the_observer_or_of_the_whole_machine_kills_nobody(pause, phase):
    # Given two workers on one machine, and a peer that beats later than the observer looks
    liveness, now, beat = Liveness("me"), 0.0, 0
    for _ in range(4):
        liveness.observe({"peer": beat}, now)
        beat, now = beat + 1, now + BEAT_SECONDS
    # When everything stands still, and the observer is the first to go on
    now += pause
    liveness.observe({"peer": beat - 1}, now)
    # Then the peer has the time to go on, too
    assert liveness.dead() == set()
    liveness.observe({"peer": beat}, now + phase)
    assert liveness.dead() == set()


@given(st.floats(0, BEAT_SECONDS), st.floats(0, 0.5))
def test_a_dead_worker_is_found_within_15_seconds_and_a_beat_of_its_last_one(after, delay):
    # Given a peer that dies just after a beat, which the observer sees up to a beat later
    liveness, now = Liveness("me"), 0.0
    liveness.observe({"peer": 1}, now)
    died, now = now, now + after
    # When the observer looks whenever it should, each reading a little late
    while not liveness.dead():
        liveness.observe({"peer": 2}, now)
        assert now <= died + DEAD_SECONDS + BEAT_SECONDS + delay + 0.02
        now += liveness.next_look(now) + delay


def test_an_error_starts_the_observation_anew():
    liveness = watch({"peer": 7})
    liveness.observe({"peer": 7}, 10)
    liveness.begin_anew(11)
    assert not liveness.is_dead("peer")
    for now in (12, 20, 26.9):
        liveness.observe({"peer": 7}, now)
        assert liveness.dead() == set()
    liveness.observe({"peer": 7}, 12 + DEAD_SECONDS)
    assert liveness.dead() == {"peer"}


def test_a_gap_between_two_readings_starts_the_observation_anew():
    liveness = watch({"peer": 7})
    liveness.observe({"peer": 7}, 10)
    liveness.observe({"peer": 7}, 10 + MAX_GAP + 0.1)
    assert liveness.dead() == set()


def test_a_worker_that_comes_back_to_life_is_alive():
    liveness = watch({"peer": 7})
    for now in (5, 10, 15):
        liveness.observe({"peer": 7}, now)
    liveness.observe({"peer": 8}, 16)
    assert liveness.dead() == set()
    assert not liveness.is_dead("peer")


def test_a_worker_that_is_not_in_the_table_is_dead_once_it_was_looked_for_long_enough():
    # Given a table that was lost
    liveness = watch({"me": 1, "peer": 7})
    for now in (5, 10, DEAD_SECONDS - 0.1):
        liveness.observe({"me": 2}, now)
        # Then its workers have time to write themselves into it again
        assert not liveness.is_dead("peer")
    # And that it was struck off by somebody makes nobody wait longer for what it leaves behind
    liveness.observe({"me": 3}, DEAD_SECONDS)
    assert liveness.is_dead("peer")
    assert liveness.is_dead("never seen")
    assert liveness.dead() == set()


def test_nobody_is_dead_before_anything_was_read():
    liveness = Liveness("me")
    assert liveness.dead() == set()
    assert not liveness.is_dead("peer")


def test_those_that_left_the_table_are_forgotten():
    liveness = watch({f"worker-{number}": 1 for number in range(100)})
    for now in range(5, 60, 5):
        liveness.observe({"me": now}, now)
    assert set(liveness._since) == {"me"}


# ---------------------------------------------------------------------- who leads


def test_a_counter_that_stands_still_for_two_beats_and_a_margin_does_not_lead_but_is_not_dead():
    liveness = watch({"me": 1, "peer": 7})
    for now in (3, 6, LEAD_SECONDS - 0.1):
        liveness.observe({"me": now, "peer": 7}, now)
        assert liveness.moving() == {"me", "peer"}
    liveness.observe({"me": 9, "peer": 7}, LEAD_SECONDS)
    assert liveness.moving() == {"me"}
    assert liveness.dead() == set()
    # And it may lead again at its next beat
    liveness.observe({"me": 10, "peer": 8}, LEAD_SECONDS + 1)
    assert liveness.moving() == {"me", "peer"}


def test_the_observer_may_always_lead():
    liveness = watch({"me": 1})
    liveness.observe({"me": 1}, 9)
    liveness.observe({"me": 1}, 18)
    assert liveness.moving() == {"me"}


def test_who_has_left_the_table_does_not_lead():
    liveness = watch({"me": 1, "peer": 7})
    liveness.observe({"me": 2}, 3)
    assert liveness.moving() == {"me"}


@given(st.floats(0, BEAT_SECONDS), st.lists(st.floats(0, 1.0), min_size=1, max_size=40))
def test_a_peer_that_beats_in_time_goes_on_to_lead(phase, delays):
    # Given a peer that beats regularly, and an observer whose every reading is up to a second late
    liveness, now = Liveness("me"), 0.0
    for delay in delays:
        liveness.observe({"peer": int((now + phase) / BEAT_SECONDS)}, now)
        assert "peer" in liveness.moving()
        now += liveness.next_look(now) + delay


@given(st.floats(0, BEAT_SECONDS), st.floats(0, 0.5))
def test_another_leads_within_eleven_seconds_of_the_death_of_the_leader(after, delay):
    liveness, now = Liveness("me"), 0.0
    liveness.observe({"leader": 1}, now)
    died, now = now, now + after
    while "leader" in liveness.moving():
        liveness.observe({"leader": 2}, now)
        assert now <= died + LEAD_SECONDS + BEAT_SECONDS + delay + 0.02
        now += liveness.next_look(now) + delay
