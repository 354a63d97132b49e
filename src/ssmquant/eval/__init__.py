"""Quality of a model: divergence from a float reference, perplexity, last-word accuracy, with intervals.

`metrics` turns logits into sums a document, `statistics` turns documents into intervals and paired tests,
`evaluate` runs models over domains of text and `results` holds what comes out. Nothing is imported here, so
that the light modules (`environment`) stay light:

    from ssmquant.eval.evaluate import evaluate
    evaluation = evaluate(float_model, [quantised], {"en": ids})        # ids: int64 [documents, tokens]
    rich.print(evaluation.table())
"""
