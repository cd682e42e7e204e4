"""A training in several processes, its ranks, one for each GPU: started, watched and stopped by the stage's process."""
