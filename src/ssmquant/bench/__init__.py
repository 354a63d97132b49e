"""How fast a model runs, beside the limits of the machine and beside peers.

`workload` says what is timed and `probe` measures the machine. `subjects` are models with an engine, each run by
`worker` in a process of its own; `peers` is the table of what a model can be compared with: transformers, llama.cpp,
another model of ours. `measure` runs them all in turns, `results` holds what comes out and `tables` shows it. `shapes`
and `synthetic` make random models of published shapes, for which no checkpoint is needed. Nothing is imported here:

    from ssmquant.bench.measure import measure
    from ssmquant.bench.synthetic import random_shape
"""
