"""Stages and mixers: the same two mixer classes for every precision, their stages built from schemes.

Nothing here knows transformers, recipes or files; `families` puts the mixers into a model.
"""
