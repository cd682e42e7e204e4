"""MLflow: one run for each version of an object, with its parameters, its curves and what it scored.

    train      a thread sends the figures of each step                       ► the run is RUNNING
    publish    sends the steps that are missing, scores, sizes and addresses ► the run is FINISHED
    each stage from train on that ends without its output                    ► the run is FAILED or KILLED

A tracker changes no result: what goes wrong ends in one warning, and takes a few seconds at most.

The REST API is called directly, by eight of its calls. mlflow-skinny would add 18 packages to the image of the stages,
among them a web server and the SDK of one vendor, and its import takes seconds of each training and each publish.
"""
