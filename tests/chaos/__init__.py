"""The chaos run: real workers under a seeded mix of faults, judged by ledgers outside Redis.

    make chaos ARGS="--minutes 10 --seed 7"

`plan` draws the faults, `faults` does them, `processes` are their victims, `stranger` writes junk.
`publisher` and `shop` write the ledgers, `bookings` reads the effects in the database, `ownership` watches
the leases, `judge` compares them all, `run` ties it together. `duel` is a run in which two workers meet in
one lane. `sabotage` breaks one promise of the product at a time, in the workers of the run alone, to prove
that the judge would notice.
"""
