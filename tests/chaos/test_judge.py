"""The judge, on ledgers made by hand. Times in seconds."""

from __future__ import annotations

from tests.chaos import plan
from tests.chaos.faults import Fault
from tests.chaos.judge import SECOND, Verdict, book, judge
from tests.chaos.ledger import Call, Handling, Published
from tests.chaos.ownership import Orphan
from tests.chaos.service import Service


def published(seq: int, at: float = 0.0) -> Published:
    return Published("keyed", 0, f"{seq}-0", f"p0-{seq}", "k", seq, int(at * SECOND))


def handled(seq: int, at: float, *, worker: str = "w1", pid: int = 1, what: str = "end") -> list[Handling]:
    """A handling that took 0.01 s."""
    both = []
    for word, time in (("start", at - 0.01), (what, at)):
        both.append(Handling(word, "bykey", "keyed", 0, f"{seq}-0", f"p0-{seq}", "k", seq, 1, worker, pid,
                             int(time * SECOND)))  # fmt: skip
    return both


def fault(kind: str, at: float, *, worker: str | None = "w1", pid: int | None = None) -> Fault:
    return Fault(kind, int(at * SECOND), int(at * SECOND), worker, pid)


def verdict(messages: list[Published], handlings: list[list[Handling]], *faults: Fault) -> Verdict:
    lines = sorted((line for pair in handlings for line in pair), key=lambda line: line.at)
    return judge(messages, lines, faults, {"bykey": "keyed"}, ordered={"bykey"})


def test_a_run_in_which_each_message_is_handled_once_in_order_is_right() -> None:
    found = verdict([published(0), published(1)], [handled(0, 1.0), handled(1, 2.0)])
    assert not found.wrong
    assert found.handled == 2


def test_a_message_that_no_handler_finished_is_lost() -> None:
    found = verdict([published(0), published(1)], [handled(0, 1.0), handled(1, 2.0, what="fail")])
    assert found.wrong == ["lost 1"]


def test_a_message_is_lost_that_one_of_the_groups_of_its_topic_did_not_finish() -> None:
    lines = handled(0, 1.0)
    found = judge([published(0)], lines, [], {"bykey": "keyed", "second": "keyed", "third": "loose"})
    assert [group for group, _ in found.lost] == ["second"]


def test_what_the_server_lost_need_not_be_handled() -> None:
    found = judge([published(0)], [], [], {"bykey": "keyed"}, vanished={("keyed", 0, "0-0")})
    assert not found.lost
    assert found.vanished == 1


def test_what_the_server_lost_has_no_place_in_the_order_of_what_is_there() -> None:
    lines = [line for pair in ([handled(1, 1.0), handled(0, 2.0)]) for line in pair]
    messages = [published(0), published(1)]
    assert judge(messages, lines, [], {"bykey": "keyed"}, ordered={"bykey"}).disorder
    lost = {("keyed", 0, "0-0")}
    assert not judge(messages, lines, [], {"bykey": "keyed"}, ordered={"bykey"}, vanished=lost).disorder


def test_what_was_handled_since_the_data_with_which_the_server_came_back_may_be_repeated() -> None:
    messages, on, again = [published(0), published(9)], handled(9, 30.0), handled(0, 7.0, worker="w2", pid=2)
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    assert verdict(messages, [handled(0, 2.1), on, again], older).explained == {"failover": 1}
    assert verdict(messages, [handled(0, 1.9), on, again], older).unexplained


def test_a_failover_does_not_explain_the_repeat_of_what_was_handled_long_after_it() -> None:
    messages, on = [published(0), published(9)], handled(9, 30.0)
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    again = handled(0, 15.0, worker="w2", pid=2)
    assert verdict(messages, [handled(0, 10.9), on, again], older).explained == {"failover": 1}
    assert verdict(messages, [handled(0, 11.1), on, again], older).unexplained


def test_a_failover_explains_the_repeats_of_a_batch_of_which_a_message_ran_on_or_that_met_an_outage() -> None:
    messages, on, again = [published(0), published(9)], handled(9, 30.0), handled(0, 7.0, worker="w2", pid=2)
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    messages, slow = [*messages, published(1)], [*handled(1, 1.0)[:1], *handled(1, 4.0)[1:]]
    assert verdict(messages, [handled(0, 0.9), slow, on, again], older).explained == {"failover": 1}
    before = [handled(0, 0.3), handled(2, 0.9), handled(3, 0.9)]
    messages += [published(2), published(3)]
    assert verdict(messages, [*before, slow, on, again], older).unexplained
    outage = Fault("redis-kill", int(1.5 * SECOND), 2 * SECOND)
    assert verdict(messages, [handled(0, 1.4), on, again], outage, older).explained == {"failover": 1}
    assert verdict(messages, [handled(0, 0.4), on, again], outage, older).unexplained


def test_an_outage_explains_only_the_repeats_of_what_a_process_had_that_ended_meanwhile() -> None:
    outage = Fault("redis-kill", 5 * SECOND, 6 * SECOND)
    messages, again = [published(0), published(1)], handled(0, 8.0, worker="w2", pid=2)
    assert verdict(messages, [handled(0, 5.5), again], outage).explained == {"redis-kill": 1}
    assert verdict(messages, [handled(0, 5.5), handled(1, 30.0), again], outage).unexplained


def test_a_broker_that_answers_nobody_must_not_stop_the_handlers() -> None:
    frozen = Fault("broker", 10 * SECOND, 20 * SECOND)
    messages = [published(0, at=11.0), published(1, at=12.0)]
    assert verdict(messages, [handled(0, 11.1), handled(1, 21.0)], frozen).silent == [frozen]
    assert not verdict(messages, [handled(0, 11.1), handled(1, 16.0)], frozen).silent


def test_an_effect_must_be_there_once() -> None:
    places = [("keyed", 0, "0-0"), ("keyed", 0, "1-0"), ("keyed", 0, "2-0")]
    found = Verdict(published=3)
    book(found, [places[0], places[1], places[1]], places, ())
    assert found.wrong == ["effects missing 1", "effects twice 1"]


def test_a_lane_that_nobody_owns_is_wrong() -> None:
    orphan = Orphan(("keyed", 1, "bykey"), 0, 99 * SECOND)
    found = Verdict(published=1, ownerless=[("keyed", 0, "bykey")], orphans=[orphan], unexcused=[orphan])
    assert found.wrong == ["lanes without an owner at the end 1", "lanes without an owner for too long 1"]


def unowned(since: float, until: float, *faults: Fault) -> bool:
    """Whether that is excused."""
    orphan = Orphan(("keyed", 1, "bykey"), int(since * SECOND), int(until * SECOND))
    return orphan.is_excused(faults, {"w1": {"bykey"}, "w2": {"other"}})


def test_a_lane_is_owned_again_within_the_promised_time_of_the_last_fault_that_touched_it() -> None:
    assert unowned(10, 29)
    assert not unowned(10, 31)
    assert unowned(10, 31, fault("freeze", 12))
    assert not unowned(10, 33, fault("freeze", 12))


def test_a_lane_is_not_touched_by_clean_faults_nor_by_workers_of_other_groups_nor_by_later_ones() -> None:
    assert not unowned(10, 31, fault("stop", 12))
    assert not unowned(10, 31, fault("freeze", 12, worker="w2"))
    assert not unowned(10, 31, fault("freeze", 32))


def test_an_outage_of_the_server_excuses_what_was_still_to_be_found_out() -> None:
    outage = Fault("redis-kill", 14 * SECOND, 15 * SECOND)
    assert unowned(10, 34, outage)
    assert not unowned(10, 36, outage)
    assert not unowned(10, 36, Fault("redis-kill", 31 * SECOND, 32 * SECOND))


ONE = Call()
BATCH = Call(20, ends_together=True)


def frozen(lines: list[list[Handling]], call: Call = ONE, *, peer: float = 18.0) -> list[int]:
    """Messages whose repeat is not explained by a freeze of w1 from 2 to 24 s, after which `lines` came.

    A peer handled all of them, from 0 to 4, since the time `peer`.
    """
    others = [handled(seq, peer + seq / 100, worker="w2", pid=2) for seq in range(5)]
    every = sorted((line for lines in [*lines, *others] for line in lines), key=lambda line: line.at)
    freeze = Fault("freeze", 2 * SECOND, 24 * SECOND, "w1")
    found = judge([published(seq) for seq in range(5)], every, [freeze], {"bykey": "keyed"},
                  calls={"w1": {"bykey": call}})  # fmt: skip
    return sorted(repeat.again.seq for repeat in found.unexplained)


def called(seqs: range, starts: float, ends: float) -> list[list[Handling]]:
    """A call of a batch handler in w1, which began with them one after the other, and then ended them all."""
    begun = [handled(seq, starts + seq / 100 + 0.01)[0] for seq in seqs]
    ended = [handled(seq, ends + seq / 100)[1] for seq in seqs]
    return [begun, ended]


def test_after_a_freeze_only_what_was_in_hand_may_be_done_once_more() -> None:
    in_hand, *later = (handled(seq, 24.2 + seq / 10) for seq in range(3))
    start = [line for line in handled(0, 1.9) if line.what == "start"]
    assert frozen([start, in_hand[1:], *later]) == [1, 2]
    assert frozen([in_hand, *later]) == [1, 2], "it was about to begin"


def test_after_a_freeze_coroutines_that_were_in_hand_may_be_done_once_more() -> None:
    lines = [handled(seq, 24.2 + seq / 10) for seq in range(4)]
    assert frozen(lines, Call(2)) == [2, 3]


def test_after_a_freeze_the_rest_of_a_batch_may_be_done_once_more_but_no_second_batch() -> None:
    begun, rest, ended = called(range(2), 1.9, 24.5), called(range(2, 4), 24.1, 24.5), [handled(4, 24.7)]
    assert frozen([*begun, *rest], BATCH) == []
    assert frozen([*begun, *rest, *ended], BATCH) == [4]
    assert frozen(called(range(4), 24.1, 24.5), BATCH) == [], "it was about to begin"
    over, second = called(range(2), 1.5, 1.7), called(range(2, 4), 24.1, 24.3)
    assert frozen([*over, *second, handled(4, 24.7)], BATCH) == [4]


def test_what_a_thawed_process_ended_of_its_batch_a_peer_may_handle_after_it() -> None:
    begun, rest = called(range(2), 1.9, 24.5), called(range(2, 4), 24.1, 24.5)
    assert frozen([*begun, *rest], BATCH, peer=26.0) == []
    assert frozen([*begun, *rest], peer=26.0) == [2, 3], "a call with one message has no rest"
    assert frozen([*begun, *rest, handled(4, 24.7)], BATCH, peer=26.0) == [4]
    recovered = handled(4, 20.0, worker="w3", pid=3)
    assert frozen([*begun, *rest, recovered], BATCH, peer=90.0) == [0, 1, 2, 3, 4], "long after the recovery"


def test_a_message_that_nobody_published_is_unexpected() -> None:
    found = verdict([published(0)], [handled(0, 1.0), handled(1, 2.0)])
    assert found.wrong == ["unexpected 1"]


def test_a_message_is_known_that_was_handled_on_a_lost_server_and_published_again_after_it() -> None:
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    again = published(0)._replace(id="7-0", at=7 * SECOND)
    handlings = [handled(0, 4.0), [each._replace(id="7-0") for each in handled(0, 8.0)]]
    assert verdict([again], handlings, older).unexpected == []
    assert len(verdict([again], handlings).unexpected) == 1, "without a failover"
    early = again._replace(at=4 * SECOND)
    assert len(verdict([early], handlings, older).unexpected) == 1, "its publisher had the receipt before"


def test_a_key_that_went_on_before_its_earlier_message_was_done_is_out_of_order() -> None:
    found = verdict([published(0), published(1)], [handled(1, 1.0), handled(0, 2.0)])
    assert found.wrong == ["order violations 1"]


def test_a_repetition_of_an_older_message_is_no_violation_of_order() -> None:
    found = verdict(
        [published(0), published(1)],
        [handled(0, 1.0), handled(1, 1.1), handled(0, 3.0, worker="w2", pid=2)],
        fault("kill", 1.2),
    )
    assert not found.wrong


def test_a_repeat_is_explained_by_the_kill_of_the_process_that_had_just_finished_it() -> None:
    found = verdict(
        [published(0)], [handled(0, 1.0), handled(0, 3.0, worker="w2", pid=2)], fault("kill", 1.1)
    )
    assert found.explained == {"kill": 1}


def test_a_repeat_is_not_explained_by_the_kill_of_another_worker() -> None:
    found = verdict(
        [published(0)],
        [handled(0, 1.0), handled(0, 3.0, worker="w2", pid=2)],
        fault("kill", 1.1, worker="w3"),
    )
    assert found.wrong == ["unexplained duplicates 1"]


def test_a_repeat_is_not_explained_by_the_kill_of_another_process_of_its_worker() -> None:
    found = verdict([published(0)], [handled(0, 1.0), handled(0, 3.0)], fault("child", 1.1, pid=9))
    assert found.wrong == ["unexplained duplicates 1"]


def test_a_repeat_is_never_explained_by_a_clean_stop() -> None:
    found = verdict(
        [published(0)], [handled(0, 1.0), handled(0, 3.0, worker="w2", pid=2)], fault("stop", 1.1)
    )
    assert found.wrong == ["unexplained duplicates 1"]


def test_what_was_finished_more_than_a_batch_before_the_fault_must_not_be_repeated() -> None:
    messages = [published(seq) for seq in range(3)]
    handlings = [handled(0, 1.0), handled(1, 5.0), handled(2, 5.1)]
    found = verdict(messages, [*handlings, handled(0, 7.0, worker="w2", pid=2)], fault("kill", 5.2))
    assert found.wrong == ["unexplained duplicates 1"]


def test_a_repeat_long_after_the_recovery_is_not_explained() -> None:
    found = verdict(
        [published(0)], [handled(0, 1.0), handled(0, 60.0, worker="w2", pid=2)], fault("kill", 1.1)
    )
    assert found.wrong == ["unexplained duplicates 1"]


def late(unserved: dict[str, list[tuple[int, int]]], again: float = 64.0, *, until: float = 0.0) -> int:
    """How many repeats of what was ended after the copy are not explained by a failover from 5 to 6 s."""
    lines = [*handled(0, 3.5), *handled(0, again, worker="w2", pid=2)]
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    messages = [published(0)]
    if until:
        messages.append(published(1, at=4.0))
        lines += handled(1, until, worker="w2", pid=2)
    lines.sort(key=lambda line: line.at)
    return len(judge(messages, lines, [older], {"bykey": "keyed"}, unserved=unserved).unexplained)


def test_while_nobody_serves_a_group_the_time_for_its_repeats_stands_still() -> None:
    nobody = [(7 * SECOND, 60 * SECOND)]
    assert late({"bykey": nobody}) == 0
    assert late({}) == 1
    assert late({"other": nobody}) == 1, "it was served"
    assert late({"bykey": [(7 * SECOND, 20 * SECOND)]}) == 1, "it was served again long before"
    assert late({"bykey": nobody}, again=110.0) == 1, "it came long after somebody served it again"
    assert late({"bykey": [*nobody, (70 * SECOND, 120 * SECOND)]}, again=125.0) == 0


def test_a_repeat_may_come_late_where_faults_follow_each_other() -> None:
    older = Fault("failover", 5 * SECOND, 6 * SECOND, since=3 * SECOND)
    frozen = Fault("freeze", 20 * SECOND, 45 * SECOND, worker="w9")
    away = Fault("redis-kill", 40 * SECOND, 42 * SECOND)

    def unexplained(again: float, *faults: Fault) -> int:
        lines = [*handled(0, 3.5), *handled(0, again, worker="w2", pid=2)]
        return len(judge([published(0)], lines, faults, {"bykey": "keyed"}).unexplained)

    assert unexplained(44.0, older) == 1
    assert unexplained(44.0, older, frozen) == 0, "others had to find out that a worker is lost"
    assert unexplained(70.0, older, frozen) == 1, "they had found out long before"
    assert unexplained(70.0, older, frozen, away) == 0, "they had to begin anew"
    assert unexplained(80.0, older, frozen, away) == 1
    late = Fault("freeze", 40 * SECOND, 60 * SECOND, worker="w9")
    assert unexplained(60.0, older, late) == 1, "that came when all was over"
    assert unexplained(44.0, older, fault("stop", 20.0, worker="w9")) == 1, "who stops gives its lanes back"


def test_that_nobody_served_a_group_does_not_count_as_its_recovery() -> None:
    nobody = [(7 * SECOND, 60 * SECOND)]
    assert late({"bykey": nobody}, again=110.0, until=62.0) == 1
    assert late({"bykey": nobody}, again=110.0, until=101.0) == 0


def test_that_another_group_recovers_late_gives_a_group_no_time() -> None:
    lines = [*handled(0, 1.0), *handled(0, 60.0, worker="w2", pid=2)]
    lines += [line._replace(group="slow") for line in handled(0, 50.0, worker="w3", pid=3)]
    lines.sort(key=lambda line: line.at)
    found = judge([published(0)], lines, [fault("kill", 1.1)], {"bykey": "keyed", "slow": "keyed"})
    assert found.wrong == ["unexplained duplicates 1"]


def test_the_spells_are_known_in_which_nobody_served_a_group() -> None:
    service = Service()
    for at, served in ((1, {"a"}), (2, {"a"}), (3, {"a", "b"}), (5, set()), (7, {"a"})):
        service.look(served, {"a", "b"}, at)
    assert service.unserved(9) == {"a": [(5, 7)], "b": [(1, 3), (5, 9)]}


def test_recovery_lasts_until_everything_published_before_the_fault_is_handled() -> None:
    messages = [published(0, at=1.0), published(1, at=1.1), published(2, at=9.0)]
    found = verdict(messages, [handled(0, 1.2), handled(1, 6.5), handled(2, 20.0)], fault("kill", 1.5))
    assert found.longest is not None
    assert found.longest[1] == 5.0


def test_a_run_in_which_nothing_was_published_proves_nothing() -> None:
    assert verdict([], []).wrong == ["nothing was published"]


def test_the_same_seed_draws_the_same_faults() -> None:
    assert plan.draw(7, 60, plan.KINDS, 4) == plan.draw(7, 60, plan.KINDS, 4)
    assert plan.draw(7, 60, plan.KINDS, 4) != plan.draw(8, 60, plan.KINDS, 4)


def test_while_a_worker_is_frozen_the_server_is_left_alone_and_every_kind_comes() -> None:
    for seed in range(20):
        drawn = plan.draw(seed, 120, plan.KINDS, 2.0)
        assert {each.kind for each in drawn} == set(plan.KINDS)
        for freeze in (each for each in drawn if each.kind in plan.FREEZES):
            during = [each for each in drawn if 0 < each.at - freeze.at < freeze.seconds]
            assert not any(each.kind in (*plan.SERVER_KINDS, *plan.FREEZES) for each in during)
