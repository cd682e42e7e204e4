"""What people read about an object: its status, its Events, and warnings about its scores."""
