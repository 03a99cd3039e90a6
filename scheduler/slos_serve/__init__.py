"""The planner of SLOs-Serve (arXiv 2504.08784): which requests to admit, and the exact sequence of their batches.

    roofline.py    how long a batch takes, and how large one may be
    tiers.py       TPOT objectives as a few tiers
    stages.py      requests with several stages, their demand lines
    slices.py      what a planner says of one batch
    planner_ar.py  batches without speculation
    planner_sd.py  batches with drafts
    admission.py   the problem, and the walk along its deadlines
    dynamic.py     the dynamic program with Pareto states
    edf_sim.py     admission by simulation, the authors' later alternative
    best_effort.py what declined requests get
    survey.py      the problem of one replica, from a View

Everything but the last two works on numbers alone: no request, no table, no clock.
"""
