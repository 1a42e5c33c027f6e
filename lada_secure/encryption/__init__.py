"""Pairwise masks, secure aggregation (BFV) and blind scoring (CKKS).

The modules are split by who may import them. `parameters`, `parsing`, `masks`, `sealing` and
`blind_scores` never decrypt; `aggregate_key` (auditor) and `scoring_key` (site) do, and a server
that imports either is refused by the import contracts. The native library is loaded in worker
processes only (`workers`), never in the process that holds a ledger, a socket or a model.
"""
