"""Selectors: from the candidates' scores and features to the query, a list of distinct case ids.

A selector takes the candidates, the query size k (at most their number n) and a seeded generator,
and returns ids in the order of acquisition. Candidates arrive sorted by id and ties go to the
smaller id, so the result depends neither on the order in which the pool was scored nor on anything
random except the generator. None needs more than O(n d) memory for features of d numbers, and equal
scores or features are no special case; ``feature_space`` does what large pools need. A new selector
is one function here and one YAML under conf/strategy; keyword arguments are set in YAML beside
``_partial_: true``.
"""
