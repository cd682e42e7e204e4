"""The contract between the operator and its containers: stages, parameters, requests, results, digests, store keys."""
