"""The chaos run: real workers under a seeded mix of faults, judged by ledgers outside Redis.

    make chaos ARGS="--minutes 10 --seed 7"

`plan` draws the faults, `faults` does them, `processes` are their victims, `publisher` and `shop` write the
ledgers, `judge` compares them, `run` ties it together. `sabotage` breaks one promise of the product at a
time, in the workers of the run alone, to prove that the judge would notice.
"""
