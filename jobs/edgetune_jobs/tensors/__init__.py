"""Models tensor by tensor: from headers to a plan, from stored bytes to merged rows, through encoders to files."""
