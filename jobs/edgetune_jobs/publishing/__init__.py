"""Published versions: written, pointed at, listed, verified, fetched."""
