"""Why a stage waits, has failed or is given up, and how long nobody has to act."""
