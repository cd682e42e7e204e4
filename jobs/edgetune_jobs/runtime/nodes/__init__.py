"""A training on several nodes, the Pods of one Job: how they meet, and how one of them ends with the others."""
