"""Recipes side by side: what each costs and how far it is from the float model, in one table and one page.

`footprint` reads sizes off a plan, `timing` measures relative times, `row` joins them with the scores of
`ssmquant.eval`, `compare` fills the rows (and takes finished ones from `store`). Each is a task, which `executors` run
here, in several processes or on a `cluster`; tasks share statistics (`sharing`). `comparison` tests rows against each
other, `tables`, `plots` and `folder` write them down. Nothing is imported here:

    from ssmquant.report.compare import Calibration, compare
    comparison = compare(float_model, ["quamba2-w8a8", "w8a8-dynamic"], {"en": ids}, Calibration())
"""
