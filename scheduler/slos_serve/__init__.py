"""The planner of SLOs-Serve (arXiv 2504.08784): which requests to admit, and the exact sequence of their batches.

    roofline.py     how long a batch takes, and how large one may be
    tiers.py        TPOT objectives as a few tiers
    slices.py       what a planner says of one batch
    planner_ar.py   batches without speculation
    planner_sd.py   batches with drafts
    speculating.py  which planner a replica has, and what a batch of the plan drafts
    admission.py    the problem, the walk along its deadlines, the greedy answer
    dynamic.py      the dynamic program with Pareto states
    edf_sim.py      admission by simulation, the authors' later alternative
    stages.py       requests of several stages, their demand lines
    plan.py         the batches of those who were admitted

Up to here there are numbers only: no request, no table, no clock. The rest joins them to a replica:

    kv.py           the memory that requests will need
    standing.py     who is admitted, new, best effort
    survey.py       the problem of a replica, from a View
    routing.py      whether a replica would take one more request
    filling.py      an iteration from a batch of the plan
    best_effort.py  what declined requests get
"""
