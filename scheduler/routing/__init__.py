"""Which replica a request goes to.

policy.py           what a routing is, and where it comes from
placement.py        what the scheduler's core does with it: asks it, then the scheduling policy
planned.py          `planned`, `round_robin.py`, `least_load.py`, `prefix_affinity.py`: one file for each rule
shared.py           what several of them share: nothing to remember, turns, load
prefixes.py         which prompts a replica has seen: what `prefix-affinity` goes by
"""
