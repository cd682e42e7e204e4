"""What the operator and its containers have agreed on: stages, parameters, requests, results, digests, store keys."""
